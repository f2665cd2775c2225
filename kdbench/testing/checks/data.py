"""Data: what is loaded is what the description says, the same each time, and no training example is a test example."""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING

from kdbench.component import load_object
from kdbench.data import default_cache
from kdbench.data.base import DataRef, Split
from kdbench.testing.checks.subject import Subject

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["chance", "changing", "data", "undescribed"]


def data(subject: Subject) -> list[str]:
    """The smoke data, loaded."""
    from kdbench.data import load

    found = subject.smoke_data
    findings = changing(subject.data, load_object(found.locate)(None, default_cache(), None))
    try:
        splits = load(subject.data)
    except Exception as error:
        return [*findings, f"data set '{found.id}' does not load: {type(error).__name__}: {error}"]
    return findings + undescribed(subject.data, splits)


def chance(ref: DataRef) -> float:
    """The accuracy (percent) that no prediction made without the test labels passes.

    That of always naming the largest class, and five standard deviations.
    """
    from kdbench.data import load

    labels = load(ref)["test"].labels
    share = labels.bincount().max().item() / len(labels)
    return 100.0 * (share + 5.0 * math.sqrt(share * (1.0 - share) / len(labels)))


def changing(first: DataRef, second: DataRef) -> list[str]:
    """Located twice, data must be the same data."""
    if first.fingerprint == second.fingerprint:
        return []
    return [
        f"data set '{first.dataset}' has the fingerprint {first.fingerprint[:12]}, located again "
        f"{second.fingerprint[:12]}; a fingerprint names the content: generate from a fixed seed, hash what is loaded"
    ]


def undescribed(ref: DataRef, splits: dict[str, Split]) -> list[str]:
    """Where loaded splits are not what their description says."""
    where = f"data set '{ref.dataset}'"
    findings: list[str] = []
    for name in ("train", "test"):
        if name not in splits:
            findings.append(f"{where} has no split '{name}'; load() returns train and test")
            continue
        findings += [f"{where}, {name}: {text}" for text in _misfits(ref, name, splits[name])]
    if not findings:
        findings += [f"{where}: {text}" for text in _missing(ref, splits)]
        seen = set(_examples(splits["train"].inputs))
        leaked = sum(each in seen for each in _examples(splits["test"].inputs))
        if leaked:
            findings.append(
                f"label leak: {leaked} of the {len(splits['test'].labels)} test inputs of {where} are training inputs "
                "too; a network can answer them from memory: keep the splits apart"
            )
    return findings


def _misfits(ref: DataRef, name: str, split: Split) -> list[str]:
    import torch

    inputs, labels = split.inputs, split.labels
    if labels.shape != inputs.shape[:1]:
        return [f"{list(labels.shape)} labels for inputs of shape {list(inputs.shape)}; one label an input"]
    findings: list[str] = []
    if tuple(inputs.shape[1:]) != tuple(ref.input_shape):
        findings.append(f"inputs have the shape {list(inputs.shape[1:])}, described is {list(ref.input_shape)}")
    if len(labels) != ref.sizes.get(name):
        findings.append(f"{len(labels)} examples, described are {ref.sizes.get(name)}")
    if labels.dtype != torch.int64:
        findings.append(f"labels are {labels.dtype}; they must be int64")
    if inputs.is_floating_point() and inputs.dtype != torch.float32:
        dtype = str(inputs.dtype).removeprefix("torch.")
        findings.append(f"inputs must be uint8 or float32, these are {dtype}; convert them in load()")
    if inputs.is_floating_point() and not bool(torch.isfinite(inputs).all()):
        findings.append("some inputs are not finite; clean them before they are fingerprinted")
    classes = sorted(set(labels.tolist()))
    if classes and (classes[0] < 0 or classes[-1] >= ref.num_classes):
        findings.append(_miscounted(ref, classes))
    return findings


def _missing(ref: DataRef, splits: dict[str, Split]) -> list[str]:
    """Classes that no split has; that a small split lacks a rare one is in order."""
    classes = sorted({label for name in ("train", "test") for label in splits[name].labels.tolist()})
    return [] if classes == list(range(ref.num_classes)) else [_miscounted(ref, classes)]


def _miscounted(ref: DataRef, classes: list[int]) -> str:
    return (
        f"wrong class count: the labels are {_named(classes)}, described are {ref.num_classes} classes, "
        f"0 to {ref.num_classes - 1}; correct num_classes or the labels"
    )


def _named(classes: list[int]) -> str:
    if classes and classes == list(range(classes[0], classes[-1] + 1)):
        return f"{classes[0]} to {classes[-1]}"
    return ", ".join(map(str, classes[:20])) or "none"


def _examples(inputs: Tensor) -> list[bytes]:
    return [hashlib.blake2b(each.tobytes(), digest_size=16).digest() for each in inputs.cpu().contiguous().numpy()]
