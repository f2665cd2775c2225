from __future__ import annotations

import pytest

from kdbench.ops import build_info


@pytest.fixture(params=["cpu", "reference"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs the test once with the compiled kernel and once with plain torch."""
    if request.param == "cpu" and (reason := build_info()["reason"]):
        pytest.skip(f"the native kernels cannot be used: {reason}")
    monkeypatch.setenv("KDBENCH_OPS", request.param)
    return request.param


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what only the compiled kernel promises."""
    if reason := build_info()["reason"]:
        pytest.skip(f"the native kernels cannot be used: {reason}")
    monkeypatch.setenv("KDBENCH_OPS", "cpu")
