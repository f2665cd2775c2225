"""The files of a new plugin: rendered as a whole, and written all together or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from kdbench.errors import KdbenchError
from kdbench.files import disk_errors
from kdbench.scaffold.names import NewPlugin

__all__ = ["FILES", "render", "write"]

FILES = {
    "pyproject.toml": "pyproject.toml.j2",
    "README.md": "README.md.j2",
    ".gitignore": "gitignore.j2",
    ".github/workflows/tests.yml": "tests.yml.j2",
    "src/{package}/__init__.py": "__init__.py.j2",
    "src/{package}/study.py": "study.py.j2",
    "src/{package}/facts/paper.toml": "paper.toml.j2",
    "src/{package}/facts/table1.csv": "table1.csv.j2",
    "tests/test_conformance.py": "test_conformance.py.j2",
    "tests/test_study.py": "test_study.py.j2",
}
"""Every file of a plugin, and the template that makes it."""

ELSEWHERE = "name another place with --directory"


def render(plugin: NewPlugin) -> dict[str, str]:
    """The text of every file, by its path inside the distribution's folder."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("kdbench.scaffold"),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # what is made is Python, TOML and Markdown; each text has the filter of where it stands
    )
    environment.filters.update(toml=_toml, markdown=_markdown, bibtex=_bibtex)
    return {
        path.format(package=plugin.package): environment.get_template(template).render(plugin=plugin)
        for path, template in FILES.items()
    }


def write(plugin: NewPlugin, parent: Path) -> Path:
    """Write the plugin to ``parent/kdbench-<paper>`` and return that folder. ``parent`` is made where it is missing.

    Raises
    ------
    KdbenchError : the folder exists and is not an empty one, or the place cannot be written. Nothing is left there.
    """
    texts = render(plugin)
    folder = parent / plugin.distribution
    with _refusals(folder):
        _refuse_occupied(folder)
        missing = [place for place in (parent, *parent.parents) if not place.exists()]
        try:
            parent.mkdir(parents=True, exist_ok=True)
            _write_beside(texts, folder)
        except BaseException:
            for place in missing:  # the innermost first
                with contextlib.suppress(OSError):
                    place.rmdir()
            raise
    return folder


def _write_beside(texts: dict[str, str], folder: Path) -> None:
    """All of it into a folder that nobody looks at, which then gets its name in one step."""
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    partial.mkdir()
    try:
        for path, text in texts.items():
            target = partial / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(text.encode())  # with the same line ends everywhere
        if folder.is_dir():
            folder.rmdir()  # an empty one; Windows does not rename onto it
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _refuse_occupied(folder: Path) -> None:
    if folder.is_dir() and not folder.is_symlink():
        if any(folder.iterdir()):
            raise KdbenchError(
                "the folder is there already and not empty", where=folder, cure=f"move it away, or {ELSEWHERE}"
            )
    elif os.path.lexists(folder):
        raise KdbenchError("something else has this name already", where=folder, cure=f"move it away, or {ELSEWHERE}")


@contextlib.contextmanager
def _refusals(folder: Path) -> Iterator[None]:
    """Whatever the disk refuses, in words: a place that the user names can be wrong in every way."""
    try:
        with disk_errors(folder, ELSEWHERE):
            yield
    except OSError as error:
        raise KdbenchError(f"cannot write: {error.strerror}", where=folder, cure=ELSEWHERE) from error


def _toml(text: str) -> str:
    """A TOML string: JSON's escapes are TOML's as well."""
    return json.dumps(text, ensure_ascii=False)


def _markdown(text: str) -> str:
    return re.sub(r"([\\`*_<>\[\]#|])", r"\\\1", text)


def _bibtex(text: str) -> str:
    """A BibTeX value inside a TOML string. Braces would have to balance, so there are none of the text's own."""
    return "{" + _toml(text.translate({ord("{"): "(", ord("}"): ")"}))[1:-1] + "}"
