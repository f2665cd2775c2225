"""Names, caches, splits and statistics of data sets, and the embedded MNIST-1D."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdbench import data
from kdbench.component import load_object
from kdbench.data import DATASETS, DataRef, Split, channel_statistics, holdout, mnist1d
from kdbench.errors import KdbenchError


def small_signals(count: int = 20) -> dict[str, np.ndarray]:
    """What the generator returns, in miniature."""
    rng = np.random.default_rng(0)
    return {
        f"{split}_{what}": values
        for split in ("train", "test")
        for what, values in (
            ("inputs", rng.normal(size=(count, 1, 1, 40)).astype(np.float32)),
            ("labels", np.arange(count) % 10),
        )
    }


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Replaces the slow generator; grows by one with every generation."""
    calls: list[int] = []

    def generate(arguments: dict[str, Any]) -> dict[str, np.ndarray]:
        calls.append(1)
        return small_signals()

    monkeypatch.setattr(mnist1d, "_generate", generate)
    return calls


# names


def test_every_data_set_can_be_located() -> None:
    assert set(DATASETS) == {"mnist1d", "mnist1d-pool", "cifar10", "cifar100", "tiny-imagenet"}
    for name, description in DATASETS.items():
        assert data.dataset(name) is description
        assert callable(load_object(description.locate))


def test_an_unknown_data_set_is_answered_with_the_nearest() -> None:
    with pytest.raises(KdbenchError, match=r"unknown data set 'cifar-10'; did you mean 'cifar10'\?"):
        data.dataset("cifar-10")


def test_the_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KDBENCH_CACHE", str(tmp_path))
    assert data.default_cache() == tmp_path
    monkeypatch.delenv("KDBENCH_CACHE")
    assert data.default_cache().parts[-2:] == ("kdbench", "data")


# MNIST-1D


def test_mnist1d_as_the_package_makes_it(tmp_path: Path) -> None:
    random.seed(3)
    np.random.seed(3)
    states = random.getstate(), np.random.get_state()
    ref = mnist1d.locate(None, tmp_path, None)
    assert random.getstate() == states[0]
    for before, after in zip(states[1], np.random.get_state(), strict=True):
        np.testing.assert_array_equal(before, after)

    splits = mnist1d.load(ref)
    assert {name: len(split.labels) for name, split in splits.items()} == ref.sizes == {"train": 4_000, "test": 6_000}
    for split in splits.values():
        assert split.inputs.shape[1:] == ref.input_shape
        assert (split.inputs.dtype, split.labels.dtype) == (torch.float32, torch.int64)
    labels = torch.cat([split.labels for split in splits.values()])
    assert labels.bincount().tolist() == [1_000] * 10
    inputs = torch.cat([split.inputs for split in splits.values()])
    assert inputs.mean().item() == pytest.approx(0, abs=1e-5)
    assert inputs.std().item() == pytest.approx(1, abs=1e-4)


@pytest.mark.slow
def test_the_pool_as_the_package_makes_it(tmp_path: Path) -> None:
    ref = mnist1d.locate_pool(None, tmp_path, None)
    splits = mnist1d.load(ref)
    assert {name: len(split.labels) for name, split in splits.items()} == ref.sizes
    labels = torch.cat([split.labels for split in splits.values()])
    assert labels.bincount().tolist() == [6_000] * 10
    inputs = torch.cat([split.inputs for split in splits.values()])
    assert inputs.shape == (60_000, *ref.input_shape)
    assert len({row.tobytes() for row in inputs.flatten(1).numpy()}) == 60_000, "a signal occurs twice"
    assert inputs.double().std().item() == pytest.approx(1, abs=1e-4)


def test_mnist1d_is_generated_once(generated: list[int], tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    first = mnist1d.locate(None, tmp_path, lambda *step: seen.append(step))
    second = mnist1d.locate(Path("of no meaning"), tmp_path, lambda *step: seen.append(step))
    assert (first, len(generated)) == (second, 1)
    assert seen == [("generating MNIST-1D", 0, 10_000), ("generating MNIST-1D", 10_000, 10_000)]
    assert first.official
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[:-1] + bytes([raw[-1] ^ 1]),
        lambda raw: raw[: len(raw) // 2],
        lambda raw: b"",
        lambda raw: b"not a container at all",
    ],
    ids=["bit flip", "truncated", "empty", "foreign"],
)
def test_a_damaged_mnist1d_file_is_generated_anew(
    generated: list[int], tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    ref = mnist1d.locate(None, tmp_path, None)
    whole = Path(ref.path).read_bytes()
    Path(ref.path).write_bytes(damage(whole))
    splits = mnist1d.load(ref)
    assert len(generated) == 2
    assert Path(ref.path).read_bytes() == whole
    np.testing.assert_array_equal(splits["test"].inputs.numpy(), small_signals()["test_inputs"])


def test_another_content_is_another_fingerprint(
    generated: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = mnist1d.locate(None, tmp_path, None)
    Path(ref.path).unlink()
    monkeypatch.setattr(mnist1d, "_generate", lambda arguments: small_signals(30))
    assert mnist1d.locate(None, tmp_path, None).fingerprint != ref.fingerprint
    with pytest.raises(KdbenchError, match="differs from the data of this run"):
        mnist1d.load(ref)


def test_arguments_and_version_are_part_of_the_fingerprint(
    generated: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refs = [mnist1d.locate(None, tmp_path, None)]
    monkeypatch.setattr(mnist1d, "_version", lambda: "99.0")
    refs.append(mnist1d.locate(None, tmp_path, None))
    monkeypatch.setitem(mnist1d.ARGUMENTS["mnist1d"], "seed", 43)
    refs.append(mnist1d.locate(None, tmp_path, None))
    assert len({ref.fingerprint for ref in refs}) == len({ref.path for ref in refs}) == 3


@pytest.mark.parametrize("name", ["mnist1d", "mnist1d-pool"])
def test_the_arguments_are_the_packages_own_but_for_size_and_split(name: str) -> None:
    from mnist1d.data import get_dataset_args

    defaults, ours = get_dataset_args(as_dict=True), mnist1d.ARGUMENTS[name]
    assert {key for key, value in defaults.items() if ours.get(key) != value} == {"num_samples", "train_split", "url"}
    train = round(ours["num_samples"] * ours["train_split"])
    assert DATASETS[name].sizes == {"train": train, "test": ours["num_samples"] - train}


def test_mnist1d_lies_where_it_lay_before_there_was_a_pool(
    generated: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frozen: stages of earlier runs are found again by path and fingerprint."""
    monkeypatch.setattr(mnist1d, "_version", lambda: "0.0.2.post1")
    ref = mnist1d.locate(None, tmp_path, None)
    assert Path(ref.path).relative_to(tmp_path) == Path("mnist1d", "d7188b7879eeb6f9.safetensors")
    recipe = json.dumps({"arguments": mnist1d.ARGUMENTS["mnist1d"], "version": "0.0.2.post1"}, sort_keys=True)
    content = mnist1d._content_hash(small_signals())
    assert ref.fingerprint == hashlib.sha256(f"{recipe}\n{content}".encode()).hexdigest()


def test_the_pool_is_the_same_generator_asked_for_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def generate(arguments: dict[str, Any]) -> dict[str, np.ndarray]:
        asked.append(arguments)
        return small_signals(25)

    monkeypatch.setattr(mnist1d, "_generate", generate)
    seen: list[tuple[str, int, int]] = []
    ref = mnist1d.locate_pool(None, tmp_path, lambda *step: seen.append(step))
    assert (ref.dataset, ref.sizes) == ("mnist1d-pool", {"train": 54_000, "test": 6_000})
    assert Path(ref.path).parent == tmp_path / "mnist1d-pool"
    assert asked == [{**mnist1d.ARGUMENTS["mnist1d"], "num_samples": 60_000, "train_split": 0.9}]
    assert seen == [("generating MNIST-1D pool", 0, 60_000), ("generating MNIST-1D pool", 60_000, 60_000)]
    assert len(mnist1d.load(ref)["train"].labels) == 25
    assert mnist1d.locate(None, tmp_path, None).fingerprint != ref.fingerprint
    assert len(mnist1d.load(msgspec.structs.replace(ref, dataset="published-again"))["test"].labels) == 25
    with pytest.raises(KdbenchError, match="MNIST-1D pool as generated here differs"):
        mnist1d.load(msgspec.structs.replace(ref, path=str(tmp_path / "elsewhere" / "file")))


def test_a_cache_that_is_a_file_is_named(generated: list[int], tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(KdbenchError, match=r"cannot write.*KDBENCH_CACHE"):
        mnist1d.locate(None, blocked, None)


def test_naming_and_locating_need_no_torch_and_cached_data_no_generator(generated: list[int], tmp_path: Path) -> None:
    mnist1d.locate(None, tmp_path, None)
    code = (
        "import sys; from pathlib import Path; from kdbench.data import mnist1d, cifar; "
        f"mnist1d.locate(None, Path({str(tmp_path)!r}), None); "
        "print([name for name in ('torch', 'scipy', 'matplotlib', 'mnist1d', 'requests') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


# loading


def test_loading_is_shared_within_the_process(generated: list[int], tmp_path: Path) -> None:
    ref = mnist1d.locate(None, tmp_path, None)
    first, second = data.load(ref), data.load(ref)
    assert first["train"].inputs.data_ptr() == second["train"].inputs.data_ptr()
    del first["train"]
    assert set(data.load(ref)) == {"train", "test"}


def test_another_fingerprint_is_loaded_afresh(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []

    def loader(ref: DataRef) -> dict[str, Split]:
        loaded.append(ref.fingerprint)
        return {}

    monkeypatch.setattr(mnist1d, "load", loader)
    one = DataRef(
        dataset="x",
        title="x",
        fingerprint="one",
        official=True,
        note="",
        path="/",
        load="kdbench.data.mnist1d:load",
        input_shape=(1, 1, 1),
        num_classes=2,
        sizes={"train": 1},
    )
    two = msgspec.structs.replace(one, fingerprint="two")
    for ref in (one, one, two):
        data.load(ref)
    assert loaded == ["one", "two"]


# statistics


def test_statistics_of_images_are_on_the_scale_0_to_1() -> None:
    images = torch.randint(0, 256, (1_234, 3, 5, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[:, 1] //= 2
    mean, std = channel_statistics(Split(images, torch.zeros(len(images), dtype=torch.int64)))
    values = images.double() / 255
    assert mean == pytest.approx(values.mean((0, 2, 3)).tolist(), rel=1e-12)
    assert std == pytest.approx(values.std((0, 2, 3), correction=0).tolist(), rel=1e-9)


def test_statistics_of_signals_are_as_they_stand() -> None:
    signals = torch.tensor([[[[1.0, 3.0]]], [[[5.0, 7.0]]]])
    mean, std = channel_statistics(Split(signals, torch.zeros(2, dtype=torch.int64)))
    assert (mean, std) == ((4.0,), (5.0**0.5,))


def test_a_constant_channel_is_an_error() -> None:
    with pytest.raises(KdbenchError, match="constant"):
        channel_statistics(Split(torch.full((4, 1, 2, 2), 7, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64)))


# the held-out split


@settings(max_examples=60, deadline=None)
@given(
    labels=st.lists(st.integers(0, 4), min_size=2, max_size=120),
    fraction=st.floats(0.05, 0.95),
    seed=st.integers(0, 2**32 - 1),
)
def test_holdout_parts_the_indices_by_class(labels: list[int], fraction: float, seed: int) -> None:
    tensor = torch.tensor(labels)
    held = round(fraction * len(labels))
    if held in (0, len(labels)):
        with pytest.raises(KdbenchError, match="hold out"):
            holdout(tensor, fraction, seed)
        return
    train, validation = holdout(tensor, fraction, seed)
    assert len(validation) == held
    assert sorted([*train.tolist(), *validation.tolist()]) == list(range(len(labels)))
    for part in (train, validation):
        assert part.tolist() == sorted(part.tolist())
    for label in set(labels):
        share = fraction * labels.count(label)
        assert abs((tensor[validation] == label).sum().item() - share) < 1


def test_holdout_depends_on_its_arguments_alone() -> None:
    labels = torch.arange(500) % 10
    torch.manual_seed(1)
    np.random.seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    first = holdout(labels, 0.1, 7)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]
    np.random.seed(2)
    again, other = holdout(labels, 0.1, 7), holdout(labels, 0.1, 8)
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[1], other[1])


def test_holdout_is_the_same_in_every_version() -> None:
    """Frozen: a change here changes the validation split of every study that was recorded."""
    assert holdout(torch.arange(40) % 4, 0.2, 0)[1].tolist() == FROZEN_HOLDOUT


FROZEN_HOLDOUT = [7, 8, 10, 13, 14, 21, 27, 32]


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 1.5, 0.001])
def test_holdout_refuses_an_empty_side(fraction: float) -> None:
    with pytest.raises(KdbenchError, match="hold out"):
        holdout(torch.arange(20) % 2, fraction, 0)
