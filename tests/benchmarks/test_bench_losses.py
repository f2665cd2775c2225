"""The distillation loss, forward and backward: ``pytest --benchmark-only tests/benchmarks``.

Without ``--benchmark-only`` each contender is only held against float64, at a small shape. Published tables come from
``kdbench bench kernels``, where contenders take turns; these are for ``--benchmark-compare`` from commit to commit.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any, NamedTuple

import pytest
import torch

from kdbench.bench import CONTENDERS, FLOOR, Case
from kdbench.bench.clock import Clock, clock_of
from kdbench.bench.reference import Reference, reference
from kdbench.bench.subjects import Copy, Tensors, subject_of
from kdbench.component import load_object
from kdbench.ops import implementation

SMALL = [(8, 10)]
SHAPES = [(128, 10), (128, 100), (128, 1000), (1024, 1000), (2048, 30522), (4096, 32000)]
NAMES = [*(contender.id for contender in CONTENDERS), FLOOR]
SECONDS = 1.0  # of timing a test


def cases(full: bool) -> list[Case]:
    return [
        Case(rows=rows, classes=classes, dtype=dtype, device=device, temperature=4.0, alpha=0.9)
        for device in (["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])
        for dtype in (["float32", "bfloat16"] if full else ["float32"])
        for rows, classes in (SHAPES if full else SMALL)
    ]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    full = metafunc.config.getoption("benchmark_only")
    values = [
        pytest.param(
            case,
            name,
            id=f"{case.device}-{case.rows}x{case.classes}-{case.dtype}-{name}",
            marks=pytest.mark.benchmark(timer=timers[case.device]),
        )
        for case in cases(full)
        for name in NAMES
    ]
    metafunc.parametrize(("case", "name"), values)


@cache
def clock(device: str) -> Clock:
    return clock_of(device)


timers = {"cpu": lambda: clock("cpu").now(), "cuda": lambda: clock("cuda").now()}


class Prepared(NamedTuple):
    tensors: Tensors
    truth: Reference
    floor: float  # seconds


@lru_cache(maxsize=1)
def prepared(case: Case) -> Prepared:
    tensors = Tensors.of(case)
    copy = Copy(tensors)
    floor = min(clock(case.device).sample(copy).seconds for _ in range(20))
    return Prepared(tensors, reference(case, tensors.student, tensors.teacher, tensors.labels), floor)


def test_forward_and_backward(benchmark: Any, case: Case, name: str) -> None:
    tensors, truth, floor = prepared(case)
    benchmark.group = case.label if case.device == "cpu" else f"{case.label} {case.device}"
    if name == FLOOR:
        subject: Any = Copy(tensors)
    else:
        contender = next(contender for contender in CONTENDERS if contender.id == name)
        if contender.requires and (reason := load_object(contender.requires)(case)):
            pytest.skip(reason)
        torch.compiler.reset()
        subject = subject_of(contender, case, tensors)
        errors = truth.judge(*subject.value_and_gradient())
        assert not errors.problem
        benchmark.extra_info["gradient_error"] = errors.gradient
    watch = clock(case.device)
    rounds = max(5, min(1000, round(SECONDS / watch.sample(subject).seconds)))
    benchmark.pedantic(subject.call, setup=lambda: watch.ready(subject), rounds=rounds, warmup_rounds=2)
    benchmark.extra_info |= {"threads": torch.get_num_threads(), "ops": implementation()}
    if benchmark.stats is not None:
        median = benchmark.stats.stats.median
        benchmark.extra_info["gb_per_s"] = 3 * case.stream / median / 1e9
        benchmark.extra_info["floor_share"] = floor / median
