"""MNIST-1D (Greydanus and Kobak, ICML 2024), generated here: signals of 40 samples, 6,000 of them for testing.

``mnist1d`` has 4,000 for training, ``mnist1d-pool`` 54,000, from which many disjoint training sets can be drawn.

The generator is the authors' package ``mnist1d``; nothing is downloaded. Its arguments, its version and the content
of the arrays make the fingerprint, so a machine whose arithmetic gives other numbers gets another fingerprint. The
package standardises the signals over both splits together, as its authors publish them.
"""

from __future__ import annotations

import hashlib
import json
import random
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import filelock

from kdbench.data import DATASETS
from kdbench.data._files import writing
from kdbench.data.base import DataRef, Progress, Split
from kdbench.errors import KdbenchError
from kdbench.files import atomic_write

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Arrays = dict[str, NDArray[np.generic]]

__all__ = ["ARGUMENTS", "load", "locate", "locate_pool"]

# All of them, not only those that differ from the package's defaults: a later default must not change the data.
_ARGUMENTS: dict[str, Any] = {
    "num_samples": 10_000,
    "train_split": 0.4,
    "template_len": 12,
    "padding": [36, 60],
    "scale_coeff": 0.4,
    "max_translation": 48,
    "corr_noise_scale": 0.25,
    "iid_noise_scale": 2e-2,
    "shear_scale": 0.75,
    "shuffle_seq": False,
    "final_seq_length": 40,
    "seed": 42,
}

ARGUMENTS: dict[str, dict[str, Any]] = {
    "mnist1d": _ARGUMENTS,
    "mnist1d-pool": {**_ARGUMENTS, "num_samples": 60_000, "train_split": 0.9},
}
"""Arguments of the generator, by the data set's id."""


def locate(data_dir: Path | None, cache: Path, progress: Progress | None) -> DataRef:
    """``mnist1d`` in ``cache``, generated on the first call; ``data_dir`` has no meaning here.

    Raises
    ------
    KdbenchError : the package is missing, or the cache cannot be written.
    """
    return _locate("mnist1d", cache, progress)


def locate_pool(data_dir: Path | None, cache: Path, progress: Progress | None) -> DataRef:
    """``mnist1d-pool`` in the same way; the first call takes a quarter of a minute."""
    return _locate("mnist1d-pool", cache, progress)


def _locate(name: str, cache: Path, progress: Progress | None) -> DataRef:
    recipe = json.dumps({"arguments": ARGUMENTS[name], "version": _version()}, sort_keys=True)
    path = Path(cache) / name / f"{hashlib.sha256(recipe.encode()).hexdigest()[:16]}.safetensors"
    content = _stored(path) or _generate_into(path, name, progress)
    facts = DATASETS[name]
    return DataRef(
        dataset=facts.id,
        title=facts.title,
        fingerprint=hashlib.sha256(f"{recipe}\n{content}".encode()).hexdigest(),
        official=True,
        note="",
        path=str(path.absolute()),
        load="kdbench.data.mnist1d:load",
        input_shape=facts.input_shape,
        num_classes=facts.num_classes,
        sizes=dict(facts.sizes),
    )


def load(ref: DataRef) -> dict[str, Split]:
    """Splits with float32 inputs ``[N, 1, 1, 40]`` and int64 labels ``[N]``; a damaged file is generated anew.

    Raises
    ------
    KdbenchError : what is generated here has another fingerprint than ``ref``.
    """
    from safetensors.torch import load_file

    path = Path(ref.path)
    name = path.parent.name  # not ref.dataset: a plugin may publish this data under an id of its own
    known = name in ARGUMENTS and _locate(name, path.parent.parent, None).fingerprint == ref.fingerprint
    if not known or not path.is_file():
        raise KdbenchError(
            f"{ref.title} as generated here differs from the data of this run",
            where=path,
            cure=f"was the run planned with another version of mnist1d or on another machine? (here: {_version()})",
        )
    arrays = load_file(path)
    return {split: Split(arrays[f"{split}_inputs"], arrays[f"{split}_labels"]) for split in ("train", "test")}


def _version() -> str:
    try:
        return metadata.version("mnist1d")
    except metadata.PackageNotFoundError:
        raise KdbenchError("the package mnist1d is not installed", cure="pip install mnist1d") from None


def _stored(path: Path) -> str | None:
    """The content hash of the file, or None where it is absent or its arrays are not those it was written with."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="np") as file:
            arrays = {name: file.get_tensor(name) for name in sorted(file.keys())}
            noted = (file.metadata() or {}).get("sha256")
    except (SafetensorError, OSError):
        return None
    content = _content_hash(arrays)
    return content if content == noted else None


def _generate_into(path: Path, name: str, progress: Progress | None) -> str:
    from safetensors.numpy import save

    with writing(path.parent), filelock.FileLock(path.with_suffix(".lock")):
        # Another process may have generated it while this one waited for the lock.
        if content := _stored(path):
            return content
        total, what = int(ARGUMENTS[name]["num_samples"]), f"generating {DATASETS[name].title}"
        if progress:
            progress(what, 0, total)
        arrays = _generate(ARGUMENTS[name])
        content = _content_hash(arrays)
        atomic_write(path, save(arrays, metadata={"sha256": content}))
        if progress:
            progress(what, total, total)
        return content


def _generate(arguments: dict[str, Any]) -> Arrays:
    import numpy as np
    from mnist1d.data import make_dataset

    # The package seeds both global generators; whoever called must not notice.
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        made = make_dataset(SimpleNamespace(**arguments))
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
    return {
        "train_inputs": made["x"].astype(np.float32)[:, None, None, :],
        "train_labels": made["y"].astype(np.int64),
        "test_inputs": made["x_test"].astype(np.float32)[:, None, None, :],
        "test_labels": made["y_test"].astype(np.int64),
    }


def _content_hash(arrays: Arrays) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
