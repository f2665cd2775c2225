"""Verdicts: does a claim hold, how sure is that, and how many more seeds would decide?

Two verdicts stand beside every claim, never merged into one:

- the **gain** (:mod:`kdbench.verdict.gain`): what a distillation paper asserts, one cell against another, paired by
  seed and combined over the claim's comparisons (:mod:`kdbench.verdict.claim`);
- the **value** (:mod:`kdbench.verdict.value`): a measured mean against the paper's own number, by an equivalence test.

scipy and statsmodels do the statistics. :func:`judge` is the way in.
"""

from kdbench.verdict.claim import ClaimVerdict, judge
from kdbench.verdict.gain import LEVEL, POWER, GainTest, judge_gain, seeds_needed
from kdbench.verdict.summary import Samples, Summary, summarise
from kdbench.verdict.value import ValueTest, judge_value

__all__ = [
    "LEVEL",
    "POWER",
    "ClaimVerdict",
    "GainTest",
    "Samples",
    "Summary",
    "ValueTest",
    "judge",
    "judge_gain",
    "judge_value",
    "seeds_needed",
    "summarise",
]
