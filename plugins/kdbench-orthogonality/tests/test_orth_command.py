"""``kdbench interactions RUN``: the tables, what must be known to believe them, the JSON and the errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from orth_runs import NONE, PRUNED, TUNED, Cells, equivalence, stored

import kdbench.cli
from kdbench.errors import KdbenchError
from kdbench.result import read_run
from kdbench.store import Store
from kdbench_orthogonality.command import command
from kdbench_orthogonality.interaction import interactions

MIXED: Cells = {"mixup/CE": [94.2, 94.9, 94.4, 95.3, 94.1], "mixup/KD": [95.3, 95.8, 95.5, 96.2, 95.1]}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The user's own store, as the command finds it."""
    monkeypatch.setenv("KDBENCH_STORE", str(tmp_path / "store"))
    return Store(tmp_path / "store")


def show(*arguments: str) -> str:
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def fails(*arguments: str) -> KdbenchError:
    with pytest.raises(KdbenchError) as caught:
        CliRunner().invoke(command, arguments, catch_exceptions=False)
    return caught.value


def row(out: str, technique: str, scale: str) -> list[str]:
    """The columns of a technique's row in the table of one scale."""
    table = out.partition(f"{scale} scale")[2].partition("scale:")[0]
    (line,) = [line for line in table.splitlines() if line.startswith(f"{technique} ")]
    return [part.strip() for part in line.split("  ") if part.strip()]


def said(out: str) -> str:
    """The text without the breaks of its lines."""
    return " ".join(out.split())


def test_a_technique_has_a_row_on_each_scale(store: Store) -> None:
    """Means by hand; the intervals are the ones that are read, which other tests hold against scipy."""
    run = stored(store, NONE, TUNED, PRUNED)
    found = {each.scale: each for each in interactions(read_run(store.runs / run))}
    half = {
        (scale, name): (getattr(each, name).high - getattr(each, name).low) / 2
        for scale, each in found.items()
        for name in ("without", "under", "interaction")
    }
    out = show(run)
    assert row(out, "prune50", "accuracy") == [
        "prune50",
        "93.38",
        "94.40",
        f"+1.00 ±{half['accuracy', 'without']:.2f}",
        f"+1.02 ±{half['accuracy', 'under']:.2f}",
        f"+0.02 ±{half['accuracy', 'interaction']:.2f}",
        "0.5",
        "5",
        "orthogonal (weak), additive",
    ]
    log = row(out, "prune50", "log-error")
    assert log[:3] == ["prune50", "93.38", "94.40"]
    assert log[4] == f"{found['log-error'].under.mean:+.3f} ±{half['log-error', 'under']:.3f}"
    assert log[4].startswith("-0.1"), "fewer errors are below 0 here"
    assert log[6:8] == ["0.1", "5"]


def test_what_was_run_stands_above_the_tables(store: Store) -> None:
    run = stored(store, NONE, TUNED, PRUNED)
    first = show(run).splitlines()[0]
    assert first == f"Interactions with distillation (MNIST-1D pool, tier laptop, protocol clean, 5 seeds; {run})"


def test_the_notes_say_what_was_compared_and_by_which_margins(store: Store) -> None:
    claims = [
        equivalence("H2p-additive", "interaction/mnist1d-pool/prune50/accuracy", 0.7),
        equivalence("H2p-additive-log", "interaction/mnist1d-pool/prune50/log-error", 0.2),
    ]
    out = show(stored(store, NONE, TUNED, PRUNED, MIXED, claims=claims))
    for note in (
        "note: without X is 'none+ft' for prune50",
        "note: without X is 'none' for mixup",
        "± is half of the 95 % t interval of the differences paired by seed",
        "note: m is declared by the claims H2p-additive, H2p-additive-log",
        "note: m is that of all techniques, as no claim declares another, for mixup",
    ):
        assert note in said(out)
    assert "unknown" not in out
    assert [row(out, name, "accuracy")[6] for name in ("prune50", "mixup")] == ["0.7", "0.5"]
    assert [row(out, name, "log-error")[6] for name in ("prune50", "mixup")] == ["0.2", "0.1"]


def test_what_is_unknown_says_why_and_nothing_is_made_up(store: Store) -> None:
    perfect = {**MIXED, "mixup/KD": [100.0, *MIXED["mixup/KD"][1:]]}
    out = show(stored(store, NONE, PRUNED, perfect))
    assert row(out, "prune50", "accuracy")[3:6:2] == ["unknown", "unknown"]
    assert row(out, "prune50", "accuracy")[-1] == "orthogonal (weak), undecided"
    assert row(out, "mixup", "log-error")[4:6] == ["unknown", "unknown"]
    assert row(out, "mixup", "accuracy")[5].startswith("+0.")
    assert "note: prune50: 'none+ft' was not measured with and without distillation" in said(out)
    assert "note: mixup (log-error): a student answers the whole test split correctly" in said(out)


def test_one_seed_has_means_and_no_intervals(store: Store) -> None:
    one = ({name: values[:1] for name, values in cells.items()} for cells in (TUNED, PRUNED))
    out = show(stored(store, *one, seeds=(0,)))
    assert row(out, "prune50", "accuracy")[3:6] == ["+1.00 ±unknown", "+1.10 ±unknown", "+0.10 ±unknown"]
    assert "1 seed;" in out
    assert "note: prune50: one seed says nothing of the spread" in said(out)


def test_missing_seeds_are_told(store: Store) -> None:
    missing = {**PRUNED, "prune50/KD": [None, *PRUNED["prune50/KD"][1:]]}
    out = show(stored(store, NONE, TUNED, missing, MIXED))
    assert row(out, "prune50", "accuracy")[-2] == "4"
    assert row(out, "mixup", "accuracy")[-2] == "5"
    assert "note: not all of the run's 5 seeds have the accuracies of prune50" in said(out)


def test_rows_fit_a_line_and_long_names_are_never_cut_short(store: Store) -> None:
    """Two names that differ at their ends alone would pass for one."""
    names = [f"{'a-very-long-name-' * 3}{end}" for end in "xy"]
    cells = [{f"{name}/{column}": MIXED[f"mixup/{column}"] for column in ("CE", "KD")} for name in names]
    out = show(stored(store, NONE, TUNED, PRUNED, *cells))
    assert "…" not in out
    assert max(map(len, out.splitlines())) <= 120
    assert len(row(out, "prune50", "accuracy")) == 9


def test_json_has_everything_that_is_known(store: Store) -> None:
    run = stored(store, NONE, TUNED, PRUNED, MIXED)
    data: dict[str, Any] = json.loads(show(run, "--json"))
    found = data.pop("interactions")
    assert data == {
        "run": run,
        "paper": "orthogonality",
        "tier": "laptop",
        "dataset": "mnist1d-pool",
        "protocol": "clean",
        "seeds": [0, 1, 2, 3, 4],
        "level": 95,
    }
    assert found == json.loads(msgspec.json.encode(interactions(read_run(store.runs / run))))
    assert [(each["technique"], each["scale"]) for each in found] == [
        (name, scale) for name in ("prune50", "mixup") for scale in ("accuracy", "log-error")
    ]
    assert found[0]["grade"] == {"gain": "orthogonal (weak)", "interaction": "additive"}


def test_a_run_of_another_paper_is_refused(store: Store) -> None:
    error = fails(stored(store, NONE, TUNED, PRUNED, paper="takd"))
    assert "it is a run of 'takd', which measures no interactions" in str(error)


def test_a_run_without_the_cells_is_refused(store: Store) -> None:
    error = fails(stored(store, NONE))
    assert "measured no technique with and without distillation" in str(error)
    assert "core claims" in str(error)


def test_a_run_that_is_not_there_is_named(store: Store) -> None:
    stored(store, NONE)
    assert "other" in str(fails("other"))


def test_the_command_is_one_of_kdbench(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Found through the plugin's entry point; --store names another store than the user's own."""
    monkeypatch.setenv("KDBENCH_STORE", str(tmp_path / "nothing"))
    run = stored(store, NONE, TUNED, PRUNED)
    with pytest.raises(SystemExit) as exit:
        kdbench.cli.main(["interactions", run, "--store", str(tmp_path / "store")])
    out, err = capsys.readouterr()
    assert (exit.value.code, err) == (0, "")
    assert row(out, "prune50", "accuracy")[0] == "prune50"
    with pytest.raises(SystemExit) as exit:
        kdbench.cli.main(["interactions", stored(store, NONE), "--store", str(tmp_path / "store")])
    out, err = capsys.readouterr()
    assert exit.value.code == 1
    (line,) = err.splitlines()
    assert line.startswith("kdbench: error: the run measured no technique")
