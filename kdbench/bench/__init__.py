"""Comparisons that anyone can run: ways to compute the distillation loss, checked and timed against each other.

A :class:`Contender` says how a loss is made, a :class:`Case` on what it is measured; plugins bring contenders through
the hook ``kdbench_benchmark_contenders``. :mod:`kdbench.bench.measure` checks every contender of a case against
:mod:`kdbench.bench.reference` and times those that are right in interleaved rounds (:mod:`kdbench.bench.rounds`) with
the device's own clock (:mod:`kdbench.bench.clock`). ``docs/benchmarks`` says what the figures mean. Importing this page
imports no torch.
"""

from kdbench.bench.contender import CONTENDERS, FLOOR, Case, Contender

__all__ = ["CONTENDERS", "FLOOR", "Case", "Contender"]
