from __future__ import annotations

from collections.abc import Iterator

import pytest

from kdbench.ops import build_info, forced

NATIVE = ("avx512", "avx2", "generic")


@pytest.fixture(params=["cpu", "reference"])
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once with the compiled kernel and once with plain torch."""
    if request.param == "cpu":
        need_native()
    with forced("native" if request.param == "cpu" else "reference"):
        yield request.param


@pytest.fixture
def native() -> Iterator[None]:
    """For what only the compiled kernel promises."""
    need_native()
    with forced("native"):
        yield


@pytest.fixture(params=NATIVE)
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test with the CPU kernels of each instruction set that this machine has."""
    need_native()
    try:
        chosen = forced("native", isa=request.param)
        chosen.__enter__()
    except Exception as error:
        pytest.skip(str(error))
    yield request.param
    chosen.__exit__(None, None, None)


def need_native() -> None:
    if reason := build_info()["reason"]:
        pytest.skip(f"the native kernels cannot be used: {reason}")
