"""The ledger: where the two readings are run differently, at which tier and on which data; every released fault."""

from __future__ import annotations

import pytest

from kdbench.paper import TIERS, Paper


@pytest.fixture(scope="module")
def paper() -> Paper:
    return Paper.load("kdbench_vidlankd", study=lambda lab: iter(()))


def test_protocols_and_seeds(paper: Paper) -> None:
    assert [protocol.id for protocol in paper.protocols] == ["released", "clean"]
    assert paper.default_seeds == {"smoke": 1, "laptop": 5, "full": 5}
    (line,) = (line for line in paper.deviations if line.id == "seeds")
    assert "(1 by default at smoke, 5 at laptop and full)" in line.clean


def test_every_line_speaks_of_both_protocols_and_prose_stays_on_one_line(paper: Paper) -> None:
    for line in paper.deviations:
        assert line.written, line.id
        assert line.released, line.id
        assert all(line.text(protocol.id).strip() for protocol in paper.protocols), line.id
        prose = (line.item, line.written, line.released, line.clean, line.here, line.effect, line.source)
        assert not any("\n" in part or "  " in part for part in prose), line.id
        assert set(line.tiers) <= set(TIERS), line.id
        assert set(line.datasets) <= set(paper.datasets), line.id
        assert not line.axes, line.id
    for each in paper.claims:
        text = (each.title, each.sentence, each.source, each.metric, each.margin_reason, each.note, each.not_tested)
        assert not any("\n" in part or "  " in part for part in text), each.id


def test_where_the_two_readings_are_run_differently(paper: Paper) -> None:
    differ = {line.id for line in paper.deviations if line.text("released") != line.text("clean")}
    assert differ == {
        "body", "two-stage", "video-tower", "clip-vector", "captions", "student-steps", "compute", "weights",
        "nst-scale", "crd", "crd-settings", "nt-xent", "soft-and-l2", "nst-and-crd", "vokens", "image-distillation",
        "fine-tuning", "seeds", "negatives", "teacher-losses",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("tier", "dataset", "expected"),
    [
        ("smoke", "unspoken", {"world", "favourable-regime", "acceptability", "scale-towers", "scale-text",
                               "scale-smoke"}),
        ("laptop", "unspoken", {"world", "favourable-regime", "acceptability", "scale-towers", "scale-text"}),
        ("laptop", "unspoken-text", {"world", "favourable-regime", "acceptability", "scale-towers", "scale-text",
                                     "wikitext", "glue-small"}),
        ("laptop", "howto100m", {"missing-features", "features-not-released", "captions", "scale-towers",
                                 "scale-howto"}),
        ("full", "howto100m", {"missing-features", "features-not-released", "captions"}),
    ],
)  # fmt: skip
def test_lines_of_a_scale_apply_there_alone(paper: Paper, tier: str, dataset: str, expected: set[str]) -> None:
    limited = {line.id for line in paper.deviations if line.tiers or line.datasets}
    applying = {line.id for line in paper.deviations if line.applies(protocol="clean", tier=tier, dataset=dataset)}
    assert applying & limited == expected
    assert {line.id for line in paper.deviations} - limited <= applying


def test_every_fault_of_the_released_code_has_its_line(paper: Paper) -> None:
    lines = {line.id: line for line in paper.deviations}
    for name, words in {
        "video-tower": "never trained", "clip-vector": "pooler on time step 1", "crd": "memory moved away",
        "soft-and-l2": "unreachable", "vokens": "no runnable code", "image-distillation": "no runnable code",
        "squad-swag-piqa": "no runnable code", "diagnostics-tracie": "no code at any time",
        "student-steps": "500,000", "shuffling": "not for the distilled", "captions": "first caption",
        "missing-features": "zeros", "features-not-released": "not released", "released-student": "NST alone",
        "nst-form": "issue 6", "nst-scale": "divided by the length", "nt-xent": "(2B)^2 x H", "seeds": "95",
    }.items():  # fmt: skip
        assert words in lines[name].released, name
    assert "1e-4 is unstable" in lines["fine-tuning"].effect
    assert "220 steps of the baseline for 500" in lines["student-steps"].released
