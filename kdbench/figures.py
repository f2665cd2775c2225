"""Figures that a paper's plugin draws of a finished run: SVG files beside ``run.json``, and in the dossier."""

from __future__ import annotations

from pathlib import Path

from kdbench.component import load_object
from kdbench.errors import KdbenchError
from kdbench.files import atomic_write, disk_errors
from kdbench.result import Reproduction

__all__ = ["FOLDER", "draw", "drawn"]

FOLDER = "figures"


def draw(result: Reproduction, figures: str) -> list[Path]:
    """Write what the function at the import path ``figures`` draws of a run to the run's folder.

    Raises
    ------
    KdbenchError : it raises, or gives a name that is no file's, or what is no SVG.
    """
    try:
        made = load_object(figures)(result)
        for name, text in made.items():
            if not str(name).replace("-", "").replace("_", "").isalnum():
                raise ValueError(f"'{name}' is no name of a figure: letters, digits, - and _ make one")
            if not text.lstrip().startswith(("<?xml", "<svg")):
                raise ValueError(f"figure '{name}' is no SVG text")
    except KdbenchError:
        raise
    except (Exception, SystemExit) as error:  # whatever a third party's code raises
        raise KdbenchError(f"drawing raised {type(error).__name__}: {error}", where=figures) from error
    folder = result.path / FOLDER
    paths = []
    with disk_errors(folder):
        folder.mkdir(exist_ok=True)
        for name, text in made.items():
            atomic_write(folder / f"{name}.svg", text.encode())
            paths.append(folder / f"{name}.svg")
    return paths


def drawn(folder: Path) -> list[Path]:
    """The figures of a run that was kept in ``folder``, by name."""
    return sorted((folder / FOLDER).glob("*.svg"))
