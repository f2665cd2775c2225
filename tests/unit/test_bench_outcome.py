"""What is computed from times and how it is shown: by hand, without measuring."""

from __future__ import annotations

import msgspec
import pytest

from kdbench.bench import Case
from kdbench.bench.outcome import CaseResult, Entry, Machine, Report, Timing
from kdbench.bench.tables import as_markdown, columns, duration, fitting, remarks, rows, summary
from kdbench.record import Environment


def timing(median: float) -> Timing:
    return Timing(n=5, calls=2, median=median, minimum=median / 2, q1=median * 0.9, q3=median * 1.1)


def result(device: str = "cpu") -> CaseResult:
    case = Case(rows=1000, classes=1000, dtype="float32", device=device, temperature=4.0, alpha=0.9)
    walls = {"kdbench": timing(2e-3), "eager": timing(6e-3)} if device == "cuda" else {}
    entries = [
        Entry(id=name, title=name, status="measured", time=timing(time), wall=walls.get(name))
        for name, time in {"eager": 40e-3, "compile": 12e-3, "compile-log": 10e-3, "kdbench": 2e-3}.items()
    ]
    entries[-1].peak_bytes = 4_000_000 if device == "cuda" else None
    entries.append(Entry(id="liger", title="", status="not available", reason="no GPU"))
    entries.append(Entry(id="floor", title="", status="measured", time=timing(1e-3)))
    found = CaseResult(case=case, entries=entries)
    found.compare()
    return found


def report(*cases: CaseResult) -> Report:
    here = Environment(
        kdbench="1.0", commit="c0ffee", code="", python="3.11", torch="2.13", numpy="2", platform="Linux",
        processor="Abacus", cores=2, threads=2, device="cpu: Abacus", ops="cpu",
    )  # fmt: skip
    machine = Machine(
        environment=here, instruction_set="avx2", torch_instruction_set="AVX2", compiler="c++", gpu={},
        libraries={}, huge_pages="madvise", allocator={}, load=0.5,
    )  # fmt: skip
    return Report(date="2026-01-01", seconds_per_case=1.0, machine=machine, method=["by hand"], cases=list(cases))


def test_quartiles_of_a_known_series() -> None:
    found = Timing.of([5.0, 1.0, 2.0, 4.0, 3.0], calls=7)
    assert (found.n, found.calls, found.minimum) == (5, 7, 1.0)
    assert (found.q1, found.median, found.q3) == (2.0, 3.0, 4.0)


def test_ratios_are_to_eager_and_to_the_better_compiled_form() -> None:
    found = result()
    own, floor, eager = found.entry("kdbench"), found.entry("floor"), found.entry("eager")
    assert own
    assert floor
    assert eager
    assert own.x_eager == pytest.approx(20)
    assert own.x_compile == pytest.approx(5)
    assert own.gb_per_s == pytest.approx(6.0)  # 12 MB in 2 ms
    assert own.floor_share == pytest.approx(0.5)
    assert (floor.x_eager, floor.x_compile, floor.floor_share) == (None, None, 1.0)
    assert eager.x_eager == 1.0
    assert own.wall_x_eager is None


def test_without_a_rival_there_is_no_ratio() -> None:
    found = result()
    found.entries = [entry for entry in found.entries if entry.id in ("kdbench", "liger")]
    for entry in found.entries:
        entry.x_eager = entry.x_compile = entry.floor_share = None
    found.compare()
    own = found.entry("kdbench")
    assert own
    assert (own.x_eager, own.x_compile, own.floor_share) == (None, None, None)
    assert found.entry("nobody") is None


def test_on_a_gpu_there_are_wall_time_and_memory_too() -> None:
    found = result("cuda")
    own = next(cells for cells in rows(found) if cells[0] == "kdbench")
    assert dict(zip(columns(found)[-3:], own[-3:], strict=True)) == {
        "wall": "2.00 ms",
        "x eager": "3.00",
        "peak": "1.00 NC",
    }
    assert len(columns(result())) == len(columns(found)) - 3


def test_the_document_comes_back_as_it_went() -> None:
    first = report(result(), CaseResult(case=result().case, problem="too large"))
    assert msgspec.json.decode(msgspec.json.encode(first), type=Report) == first


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (1.234e-8, "0.01 us"),
        (1.2345e-6, "1.23 us"),
        (9.996e-6, "10.0 us"),
        (99.96e-6, "100 us"),
        (0.9994e-3, "999 us"),
        (0.9996e-3, "1.00 ms"),
        (0.9996, "1.00 s"),
        (123.4, "123 s"),
    ],
)
def test_durations_have_three_digits(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_contender_has_a_row_or_a_reason() -> None:
    found = result()
    assert [cells[0] for cells in rows(found)] == ["eager", "compile", "compile-log", "kdbench", "floor"]
    assert remarks(found) == ["liger: not available: no GPU"]
    assert {len(cells) for cells in rows(found)} == {len(columns(found))}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_narrow_terminal_loses_columns_but_no_digits(device: str) -> None:
    found = result(device)
    lines = [columns(found), *rows(found)]
    assert fitting(lines, 150) == lines
    narrow = fitting(lines, 80)
    assert sum(max(map(len, column)) + 3 for column in zip(*narrow, strict=True)) - 3 <= 80
    for wanted in ("contender", "median", "x eager", "x compile", "of floor"):
        assert wanted in narrow[0]
    assert [line[:2] for line in narrow] == [line[:2] for line in lines]


def test_a_busy_machine_is_remarked_upon() -> None:
    found = result()
    found.others = 0.1
    assert len(remarks(found)) == 1
    found.others = 1.25
    assert remarks(found)[0] == "other processes used 1.2 cores meanwhile: measure again on a machine that is idle"


def test_markdown_holds_the_same_cells() -> None:
    text = as_markdown(report(result(), result()))
    assert "### 1000 x 1000 float32, T = 4, alpha = 0.9" in text
    assert "| kdbench | 2.00 ms | 400 us | 1.00 ms | 20.0 | 5.00 | 6 | 50 % |  | 5 x 2 |" in text
    assert "- liger: not available: no GPU" in text
    assert "Abacus, 2 cores, 2 threads" in text
    assert "| 1000 x 1000 | float32 | 2.00 ms | 20.0 | 5.00 |  |  |  | 50 % |" in text


def test_the_summary_leaves_out_cases_without_kdbench() -> None:
    empty = CaseResult(case=result().case, problem="too large")
    assert len(summary(report(result(), empty))[1]) == 1
