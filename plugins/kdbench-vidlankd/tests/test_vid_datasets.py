"""The data sets: how they are described, located and loaded, and what that imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from vid_folder import TEXTS, howto100m, real_archive, write

from kdbench.component import load_object
from kdbench.data.base import DataRef, Dataset
from kdbench.errors import KdbenchError
from kdbench_vidlankd import datasets
from kdbench_vidlankd.datasets import HOWTO, TEXT, UNSPOKEN
from kdbench_vidlankd.features import MOST_STEPS, Clips
from kdbench_vidlankd.world import World

EVERY = (UNSPOKEN, TEXT, HOWTO)


@pytest.fixture
def data(tmp_path: Path) -> dict[str, Path | None]:
    """A folder for each data set."""
    return {
        UNSPOKEN.id: None,
        TEXT.id: write(tmp_path / "text", TEXTS),
        HOWTO.id: howto100m(tmp_path / "howto100m"),
    }


def located(dataset: Dataset, data: dict[str, Path | None], cache: Path) -> DataRef:
    found = load_object(dataset.locate)(data[dataset.id], cache, None)
    assert isinstance(found, DataRef)
    return found


# description


def test_the_plugin_publishes_three() -> None:
    assert [dataset.id for dataset in datasets.kdbench_datasets()] == ["unspoken", "unspoken-text", "howto100m"]


def test_only_the_world_needs_nothing(tmp_path: Path) -> None:
    assert [(dataset.embedded, dataset.supplied) for dataset in EVERY] == [(True, False), (False, True), (False, True)]
    assert [dataset.at_hand(tmp_path) for dataset in EVERY] == [True, False, False]


def test_features_are_as_wide_as_their_two_networks_give() -> None:
    assert HOWTO.input_shape == (1, MOST_STEPS, 2 * 2_048)


@pytest.mark.parametrize("dataset", EVERY, ids=lambda dataset: dataset.id)
def test_a_reference_says_what_the_description_says(
    dataset: Dataset, data: dict[str, Path | None], tmp_path: Path
) -> None:
    ref, expected = located(dataset, data, tmp_path / "cache"), dataset.expected()
    for name in ("dataset", "title", "input_shape", "num_classes"):
        assert getattr(ref, name) == getattr(expected, name)
    assert ref.sizes.keys() == expected.sizes.keys()
    assert ref.load == "kdbench_vidlankd.datasets:load"
    assert len(ref.fingerprint) == 64
    # What the user supplies is not what a paper had.
    assert ref.official == (dataset is UNSPOKEN)
    assert bool(ref.note) == (dataset is not UNSPOKEN)
    assert ref.path == (str(data[dataset.id]) if dataset.supplied else "")


def test_notes_say_how_data_differ(data: dict[str, Path | None], tmp_path: Path) -> None:
    assert "WikiText-2's validation text" in located(TEXT, data, tmp_path / "cache").note
    howto = located(HOWTO, data, tmp_path / "cache")
    assert "the user's own (2 clips)" in howto.note
    assert howto.sizes == {"train": 2, "test": 0}


@pytest.mark.parametrize("dataset", [TEXT, HOWTO], ids=lambda dataset: dataset.id)
def test_supplied_data_are_never_downloaded(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(KdbenchError, match="is never downloaded") as caught:
        load_object(dataset.locate)(None, tmp_path, None)
    assert caught.value.cure is not None
    assert "--data-dir" in caught.value.cure
    with pytest.raises(KdbenchError, match="the data folder does not exist"):
        load_object(dataset.locate)(tmp_path / "nothing", tmp_path, None)


# fingerprints

FINGERPRINTS = """
import sys
from pathlib import Path
from kdbench_vidlankd.datasets import locate_features, locate_texts, locate_world
text, howto, cache = map(Path, sys.argv[1:])
print(locate_world(None, cache, None).fingerprint)
print(locate_texts(text, cache, None).fingerprint)
print(locate_features(howto, cache, None).fingerprint)
"""


def test_fingerprints_are_the_same_in_another_process(data: dict[str, Path | None], tmp_path: Path) -> None:
    arguments = [str(data[TEXT.id]), str(data[HOWTO.id]), str(tmp_path / "another cache")]
    done = subprocess.run([sys.executable, "-c", FINGERPRINTS, *arguments], capture_output=True, text=True, check=True)
    mine = [located(dataset, data, tmp_path / "cache").fingerprint for dataset in EVERY]
    assert done.stdout.split() == mine
    assert len(set(mine)) == 3


def test_fingerprints_tell_content_apart(data: dict[str, Path | None], tmp_path: Path) -> None:
    text, howto = data[TEXT.id], data[HOWTO.id]
    assert text is not None
    assert howto is not None
    before = {dataset.id: located(dataset, data, tmp_path / "cache").fingerprint for dataset in EVERY}
    write(text, {"sst2/test.tsv": "1\tmats\n"})
    write(howto / "glue", {"SST-2/dev.tsv": "sentence\tlabel\nthe mat\t1\n"})
    after = {dataset.id: located(dataset, data, tmp_path / "cache").fingerprint for dataset in EVERY}
    assert [before[dataset.id] == after[dataset.id] for dataset in EVERY] == [True, False, False]


def test_the_generator_is_part_of_every_worlds_fingerprint(
    data: dict[str, Path | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = [located(dataset, data, tmp_path / "cache").fingerprint for dataset in (UNSPOKEN, TEXT)]
    for name, value in (("NOISE", 0.3), ("SPOKEN", 0.5)):  # of clips, of text
        with monkeypatch.context() as patch:
            patch.setattr(f"kdbench_vidlankd.world.{name}", value)
            after = [located(dataset, data, tmp_path / "cache").fingerprint for dataset in (UNSPOKEN, TEXT)]
        assert all(one != other for one, other in zip(before, after, strict=True))


# loading


@pytest.mark.parametrize("dataset", [UNSPOKEN, TEXT], ids=lambda dataset: dataset.id)
def test_splits_fit_their_reference(dataset: Dataset, data: dict[str, Path | None], tmp_path: Path) -> None:
    ref = located(dataset, data, tmp_path / "cache")
    splits = load_object(ref.load)(ref)
    assert splits.keys() == ref.sizes.keys()
    for name, split in splits.items():
        assert split.inputs.shape == (ref.sizes[name], *ref.input_shape)
        assert split.labels.shape == (ref.sizes[name],)
        assert (split.inputs.dtype, split.labels.dtype) == (torch.float32, torch.int64)
        assert set(split.labels.tolist()) == set(range(ref.num_classes))
        assert split.inputs.isfinite().all()
    world = World(0)
    assert np.array_equal(splits["train"].inputs[:, 0].numpy(), world.train_clips)
    assert np.array_equal(splits["test"].labels.numpy(), world.clip_labels("test"))


def test_no_test_clip_is_a_training_clip(data: dict[str, Path | None], tmp_path: Path) -> None:
    splits = datasets.load(located(UNSPOKEN, data, tmp_path))
    seen = {name: {clip.numpy().tobytes() for clip in split.inputs} for name, split in splits.items()}
    assert [len(clips) for clips in seen.values()] == [len(split.inputs) for split in splits.values()]
    assert not seen["train"] & seen["test"]


def test_features_are_not_loaded_at_once(data: dict[str, Path | None], tmp_path: Path) -> None:
    ref = located(HOWTO, data, tmp_path / "cache")
    with pytest.raises(KdbenchError, match="HowTo100M features are read clip by clip") as caught:
        datasets.load(ref)
    assert caught.value.where == ref.path
    assert caught.value.cure == "use kdbench_vidlankd.features.Clips"
    assert Clips(Path(ref.path)).videos == ("aa", "bb")


def test_the_real_archive_is_located_once_unpacked_and_is_its_folder(tmp_path: Path) -> None:
    archive = real_archive()
    ref = datasets.locate_texts(archive, tmp_path, None)
    assert datasets.locate_texts(Path(ref.path), tmp_path / "another", None).fingerprint == ref.fingerprint
    assert "SST-2" in ref.note


# imports

LISTING = """
import sys
from kdbench_vidlankd.datasets import kdbench_datasets
for dataset in kdbench_datasets():
    print(dataset.id, dataset.expected().sizes["train"])
print(sorted({"torch", "transformers", "tokenizers", "sklearn", "numpy"} & set(sys.modules)))
"""

COMMAND = """
import sys
from kdbench.cli import main
try:
    main(["data", "list"])
except SystemExit as left:
    assert not left.code, left.code
print(sorted({"torch", "transformers", "tokenizers", "sklearn"} & set(sys.modules)))
"""


def test_describing_data_sets_imports_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", LISTING], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "howto100m" in done.stdout


def test_listing_data_sets_imports_neither_torch_nor_transformers() -> None:
    done = subprocess.run([sys.executable, "-c", COMMAND], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    assert "unspoken-text" in done.stdout
