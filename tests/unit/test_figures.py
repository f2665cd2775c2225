"""Figures of a run: drawn into its folder, named where they cannot be, and shown in the dossier."""

from __future__ import annotations

from pathlib import Path

import pytest
from toy_paper import toy_paper

from kdbench.errors import KdbenchError
from kdbench.figures import draw, drawn
from kdbench.result import Reproduction

SVG = '<svg xmlns="http://www.w3.org/2000/svg"/>'


class Run:
    """As much of a result as drawing needs."""

    def __init__(self, path: Path) -> None:
        self.path = path


def two(result: Reproduction) -> dict[str, str]:
    return {"front": SVG, "a-line": f'<?xml version="1.0"?>{SVG}'}


def outside(result: Reproduction) -> dict[str, str]:
    return {"../front": SVG}


def picture(result: Reproduction) -> dict[str, str]:
    return {"front": "GIF89a"}


def raises(result: Reproduction) -> dict[str, str]:
    raise ZeroDivisionError("no axis")


def test_figures_lie_beside_the_run(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert drawn(tmp_path) == []
    made = draw(run, f"{__name__}:two")  # type: ignore[arg-type]
    assert [path.name for path in made] == ["front.svg", "a-line.svg"]
    assert [path.name for path in drawn(tmp_path)] == ["a-line.svg", "front.svg"]
    assert (tmp_path / "figures" / "front.svg").read_text() == SVG


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("outside", "ValueError: '../front' is no name of a figure"),
        ("picture", "ValueError: figure 'front' is no SVG text"),
        ("raises", "drawing raised ZeroDivisionError: no axis"),
        ("nobody", f"cannot load '{__name__}:nobody'"),
    ],
)
def test_what_cannot_be_drawn_is_named_and_leaves_nothing(tmp_path: Path, function: str, said: str) -> None:
    with pytest.raises(KdbenchError) as error:
        draw(Run(tmp_path), f"{__name__}:{function}")  # type: ignore[arg-type]
    assert said in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_paper_says_who_draws_it() -> None:
    assert toy_paper().figures == ""
