"""Facts: every number has a source, every claim says where it stands and by how much it is judged."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from kdbench.data.base import Dataset
from kdbench.errors import unknown
from kdbench.paper import TIERS, Claim, Paper

__all__ = ["cites", "claims", "datasets", "sources"]

_LETTERED = (
    r"(?i:tables?|tab|figures?|figs?|sections?|sect?|§+|equations?|eqn?s?|appendi(?:x|ces)|app|theorems?|thm|lemmas?|"
    r"propositions?|prop|corollar(?:y|ies)|algorithms?|alg|chapters?|listings?)"
)
_PAGE = r"(?i:pages?|pp?|footnotes?)"
_DIGIT = r"\.?[\s(]*\d"
# "Table I" and "Appendix A", but not "the table I found": before a verb the letter is a word.
_AFTER = r"(?!\s+(?!(?:and|or|to|of|in|on|for|with|left|right|top|bottom|row|column|its|caption|footnote)\b)[a-z])"
_LETTER = rf"(?:\.\s*|\s)[\s(]*(?:[A-Z]\.?\d|[B-HJ-Z]\b|[IVXLC]{{2,}}\b|[AI]\b{_AFTER})"
_TITLED = (
    r"\b(?:Abstract|Introduction|Related [Ww]ork|Background|Preliminaries|Approach|Methods?|Methodology|Experiments?|"
    r"Experimental [Ss]etup|Setup|Results|Evaluation|Ablations?|Analysis|Discussion|Limitations|Conclusions?|"
    r"Implementation [Dd]etails|Training [Dd]etails)\b"
)
_WORDED = (
    r"(?i:\b(?:abstract|caption|appendix|supplement|supplementary|introduction|(?:the|its|their) "
    r"(?:conclusions?|discussion|footnote)|(?:the|its|paper's|main) text)\b)"
)
_SECTION = (
    r"(?i:(?<!\w)(?!(?:the|this|that|a|an|one|some|any|which|each|every|its|their|our|your|my|same|next|last|whole)\s)"
    r"[a-z]\w*\s+section\b)"
)
_CITES = re.compile(rf"(?<!\w){_LETTERED}(?:{_DIGIT}|{_LETTER})|(?<!\w){_PAGE}{_DIGIT}|{_TITLED}|{_WORDED}|{_SECTION}")


def cites(source: str) -> bool:
    """Whether a source names a place: a table, figure, section, equation, theorem or page by its number or letter, a
    section by its title, the abstract, an appendix or the text."""
    return _CITES.search(source) is not None


def sources(paper: Paper) -> list[str]:
    """Every claim cites a place in a publication; every reported number, table, gate and ledger line has a source."""
    return [f"paper '{paper.id}': {text}" for text in (*_citation(paper), *_claim_sources(paper), *_numbers(paper))]


def _citation(paper: Paper) -> Iterator[str]:
    for field in ("title", "authors", "venue", "url", "bibtex", "summary"):
        if not getattr(paper, field).strip():
            yield f"its {field} is empty; say which publication it is"
    if not paper.protocols:
        yield "it declares no protocol; declare at least one of written, released and clean"
    for protocol in paper.protocols:
        if not protocol.sentence.strip():
            yield f"protocol '{protocol.id}' has no sentence; say what is read from where"


def _claim_sources(paper: Paper) -> Iterator[str]:
    for claim in paper.claims:
        if not claim.source.strip():
            yield f"claim {claim.id} has no source; name the table or section of the paper that makes it"
        elif not cites(claim.source):
            yield (
                f"claim {claim.id} has the source '{claim.source}', which names no table, figure, section, equation "
                "or page; name the place in the paper that makes it"
            )


def _numbers(paper: Paper) -> Iterator[str]:
    for table in paper.tables:
        if not table.source.strip():
            yield f"table '{table.id}' has no source; name where it stands"
        for cell in table.cells:
            if cell.value is not None and not cell.source.strip():
                yield f"the cell '{cell.cell}' has the value {cell.printed or cell.value} and no source; name it"
            if cell.value is not None and cell.certainty == "not found":
                yield f"the cell '{cell.cell}' has the value {cell.printed or cell.value} and is 'not found'; say which"
            if cell.value is None and cell.certainty != "not found":
                yield (
                    f"the cell '{cell.cell}' is blank and its certainty '{cell.certainty}'; write 'not found', or the "
                    "number that was read"
                )
    others = [(f"gate of {gate.network}", gate.source) for gate in paper.gates]
    others += [(f"deviation {line.id}", line.source) for line in paper.deviations]
    others += [(f"parameter count of {each.network} on {each.dataset}", each.source) for each in paper.parameter_counts]
    for name, source in others:
        if not source.strip():
            yield f"the {name} has no source; name where it was read"


def claims(paper: Paper) -> list[str]:
    """There is something to test, and every tested claim says by how much it is judged, and why."""
    findings = [text for claim in paper.claims if claim.alternatives for text in _margins(claim)]
    if not any(claim.alternatives for claim in paper.claims):
        findings.append("none of its claims has comparisons: there is nothing to test; give one 'alternatives'")
    for claim in paper.claims:
        if bool(claim.alternatives) == bool(claim.not_tested.strip()):
            findings.append(f"claim {claim.id} needs either comparisons or a reason why it is not tested")
        if any(not alternative for alternative in claim.alternatives):
            findings.append(f"claim {claim.id} has an empty alternative, which would always hold; remove it")
    ids = [claim.id for claim in paper.claims] + [line.id for line in paper.deviations]
    names = [cell.cell for table in paper.tables for cell in table.cells]
    for name in sorted({name for each in (ids, names) for name in each if each.count(name) > 1}):
        findings.append(f"'{name}' stands twice in the facts; give each claim, ledger line and cell a name of its own")
    return [f"paper '{paper.id}': {text}" for text in findings]


def _margins(claim: Claim) -> Iterator[str]:
    if not claim.margin_reason.strip():
        yield f"claim {claim.id} gives no margin_reason; say why {claim.gain_margin:g} {claim.unit} would matter"
    if claim.gain_margin < 0 or claim.value_margin < 0:
        yield f"claim {claim.id} has a negative margin; margins are half-widths"
    for comparison in (each for alternative in claim.alternatives for each in alternative):
        margin = claim.gain_margin if comparison.margin is None else comparison.margin
        if not margin > 0:
            yield (
                f"claim {claim.id} compares '{comparison.left}' with '{comparison.right}' by a margin of {margin:g}; "
                "declare the smallest gain that would matter (gain_margin, or margin in the comparison)"
            )


def datasets(paper: Paper, known: Mapping[str, Dataset]) -> list[str]:
    """The paper's data sets are published by some plugin, and smoke tier needs no download."""
    findings = _unknown(paper, known)
    smoke = paper.default_dataset.get("smoke", "")
    if smoke in known and not known[smoke].embedded:
        others = ", ".join(name for name, each in known.items() if each.embedded)
        findings.append(
            f"paper '{paper.id}': smoke tier runs on '{smoke}', which must be downloaded; take embedded data ({others})"
        )
    return findings


def _unknown(paper: Paper, known: Mapping[str, Dataset]) -> list[str]:
    findings: list[str] = []
    for name in dict.fromkeys((*paper.datasets, *(paper.default_dataset.get(tier, "") for tier in TIERS))):
        if name not in known:
            findings.append(f"paper '{paper.id}': {unknown('data set', name, known)}")
    for tier in TIERS:
        if paper.default_dataset.get(tier) not in paper.datasets:
            findings.append(f"paper '{paper.id}': tier '{tier}' has no default among its data sets; name one")
    return findings
