"""Both steps on supplied data, as a user starts them: a folder of features, and real text around the world."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from vid_folder import GLUE, TEXTS, VOCABULARY, clip, said, save, write, write_captions

from kdbench.errors import KdbenchError
from kdbench.plan import Plan
from kdbench.result import Reproduction

pytest.importorskip("transformers", reason="needs kdbench-vidlankd[bert]")

from kdbench_vidlankd import grammar

Smoke = Callable[..., Reproduction]
SENTENCES = ("the cat sat on a mat .", "a cat sat .", "on the mat the cat sat .")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight clips in the layout of HowTo100M's features, with text for one batch and a few held-out blocks."""
    folder = tmp_path_factory.mktemp("howto100m")
    names = [f"clip{number}" for number in range(8)]
    for number, name in enumerate(names):
        clip(folder, name, 6 + number)
    write_captions(folder, {name: said((0, 3, "the cat sat"), (3, 5.5, f"on a mat {name}")) for name in names})
    write(folder / "glue", GLUE)
    lines = {"text/train.txt": 1_200, "text/valid.txt": 60}
    text = {name: "\n".join(SENTENCES[row % 3] for row in range(rows)) for name, rows in lines.items()}
    return write(folder, {**text, "vocab.txt": "\n".join(VOCABULARY)})


def test_both_steps_run_on_a_folder_of_features(kdbench_smoke: Smoke, videos: Path) -> None:
    result = kdbench_smoke("vidlankd", dataset="howto100m", data_dir=videos, claims="no-harm,T")
    assert result.complete, result.run.failures
    found = {value.cell: value.value for value in result.run.values}
    losses = [found[f"text/howto100m/{arm}/mlm"] for arm in ("text", "nst", "crd")]
    assert all(loss is not None and 0 < loss < 10 for loss in losses)
    assert "no nouns whose attributes are known" in result.verdicts().set_index("claim").loc["T", "sentence"]


def test_of_few_clips_no_vokens_are_made(kdbench_plan: Callable[..., Plan], videos: Path) -> None:
    plan = kdbench_plan("vidlankd", dataset="howto100m", data_dir=videos, claims="all")
    assert not any("vokens" in spec.label for spec in plan.specs.values())
    assert any("student by CRD" in spec.label for spec in plan.specs.values())


def test_a_clip_whose_features_are_gone_stops_the_teacher_by_name(
    kdbench_smoke: Smoke, videos: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(videos, folder)
    save(folder, "2d", "clip3", np.zeros((9, 2_048), np.float32))
    result = kdbench_smoke("vidlankd", dataset="howto100m", data_dir=folder, claims="no-harm")
    (teacher,) = (failure for failure in result.run.failures if failure.label.startswith("teacher video"))
    assert "'clip3' is all zeros, which stands for missing features" in teacher.cause
    assert teacher.skipped > 0, "its students are not trained on what it would have been"
    (folder / "features/3d/clip5.npy").unlink()
    with pytest.raises(KdbenchError, match="'clip5' has captions and no 3D features"):
        kdbench_smoke("vidlankd", dataset="howto100m", data_dir=folder, claims="no-harm")


@pytest.mark.usefixtures("small_world")
def test_both_steps_and_fine_tuning_run_on_real_text(kdbench_smoke: Smoke, tmp_path: Path) -> None:
    known = dict.fromkeys([*VOCABULARY, *grammar.words(())])
    real = {f"wikitext2/{split}.txt": "\n".join(SENTENCES * 100) for split in ("valid", "test")}
    folder = write(tmp_path / "text", {**TEXTS, **real, "wordpiece/vocab.txt": "\n".join(known)})
    claims = "H1,no-harm,no-harm-CoLA,no-harm-RTE"
    result = kdbench_smoke("vidlankd", dataset="unspoken-text", data_dir=folder, claims=claims)
    assert result.complete, result.run.failures
    found = {value.cell: value.value for value in result.run.values}
    for arm in ("text", "nst", "crd"):
        assert 0 <= found[f"probe/unspoken-text/{arm}/colour"] <= 100
        assert found[f"glue/unspoken-text/{arm}/RTE-collapsed"] in (0.0, 1.0)
