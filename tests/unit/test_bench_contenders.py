"""Descriptors of the benchmark: every path that they name exists, and no name is ambiguous."""

from __future__ import annotations

import pytest
import torch

from kdbench.bench import CONTENDERS, FLOOR, Case, Contender
from kdbench.bench.contender import DTYPES
from kdbench.bench.rivals import why_no_liger
from kdbench.component import load_object
from kdbench.errors import KdbenchError
from kdbench.plugins import registry

CASE = Case(rows=8, classes=10, dtype="float32", device="cpu", temperature=4.0, alpha=0.9)


def test_kdbench_brings_its_contenders_through_the_hook() -> None:
    assert list(registry().contenders.values()) == list(CONTENDERS)
    ids = [contender.id for contender in CONTENDERS]
    assert ids == ["eager", "eager-log", "compile", "compile-log", "liger", "liger-jsd", "kdbench", "kdbench-inplace"]


@pytest.mark.parametrize("contender", CONTENDERS, ids=lambda contender: contender.id)
def test_every_path_leads_to_a_function(contender: Contender) -> None:
    assert callable(load_object(contender.make))
    if contender.requires:
        reason = load_object(contender.requires)(CASE)
        assert reason is None or reason


@pytest.mark.parametrize("name", ["", FLOOR, "a,b"])
def test_names_that_mean_something_else_are_refused(name: str) -> None:
    with pytest.raises(KdbenchError, match="cannot be called"):
        Contender(id=name, title="", make="x:y")


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_stream_is_one_matrix(dtype: str) -> None:
    matrix = torch.empty(8, 10, dtype=getattr(torch, dtype))
    case = Case(rows=8, classes=10, dtype=dtype, device="cpu", temperature=1.0, alpha=0.0)
    assert case.stream == matrix.nbytes
    assert case.label == f"8x10 {dtype}"


def test_liger_says_why_it_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert why_no_liger(CASE) == "its kernels run on a GPU only"
    monkeypatch.setitem(__import__("sys").modules, "liger_kernel", None)
    on_gpu = Case(rows=8, classes=10, dtype="float32", device="cuda", temperature=4.0, alpha=0.9)
    assert "liger_kernel cannot be imported: " in str(why_no_liger(on_gpu))
