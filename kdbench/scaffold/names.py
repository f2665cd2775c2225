"""What a new plugin is called, and what is known of its paper; both checked before anything is written."""

from __future__ import annotations

import keyword
import re

import msgspec

from kdbench.errors import KdbenchError

__all__ = ["NewPlugin", "describe", "paper_id"]

# kdbench's own plugin and package; a paper of that name would only confuse.
RESERVED = ("builtin", "kdbench")
LONGEST = 40


class NewPlugin(msgspec.Struct, frozen=True, kw_only=True):
    """One name for everything: the paper ``mypaper`` comes from ``kdbench-mypaper``, whose package is
    ``kdbench_mypaper``. Of the paper itself, what its author has not said is None."""

    paper: str
    title: str | None = None
    authors: str | None = None
    venue: str | None = None
    year: int | None = None
    url: str | None = None

    @property
    def distribution(self) -> str:
        """What pip installs."""
        return f"kdbench-{self.paper}"

    @property
    def package(self) -> str:
        """What Python imports."""
        return f"kdbench_{self.paper}"


def describe(
    name: str,
    *,
    title: str | None = None,
    authors: str | None = None,
    venue: str | None = None,
    year: int | None = None,
    url: str | None = None,
) -> NewPlugin:
    """The plugin that ``kdbench new-plugin`` is asked for.

    Raises
    ------
    KdbenchError : the name cannot be used or is taken by something installed, or a text cannot be written.
    """
    plugin = NewPlugin(
        paper=paper_id(name),
        title=_line("--title", title),
        authors=_line("--authors", authors),
        venue=_line("--venue", venue),
        year=year,
        url=_line("--url", url),
    )
    if year is not None and not 1900 <= year <= 2200:
        raise KdbenchError(f"{year} is not a year of publication", where="--year", cure="write it with four digits")
    if plugin.url is not None and not re.fullmatch(r"https?://[^\s/<>]+(/[^\s<>]*)?", plugin.url):
        raise KdbenchError(
            f"'{plugin.url}' is not a web address", where="--url", cure="write it from https:// on, without spaces"
        )
    _refuse_taken(plugin)
    return plugin


def paper_id(name: str) -> str:
    """``mypaper`` from ``mypaper``, ``my-paper``, ``kdbench-mypaper`` or ``kdbench_my_paper``.

    Raises
    ------
    KdbenchError : what is left cannot name a paper, a distribution and a package alike.
    """
    short = re.sub(r"^kdbench[-_]", "", name)
    if not re.fullmatch(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*", short):
        near = re.sub(r"[^a-z0-9]", "", short.lower()).lstrip("0123456789")
        raise KdbenchError(
            f"'{name}' cannot name a plugin",
            where="NAME",
            cure="use small letters, digits and single hyphens, a letter first"
            + (f", for instance '{near}'" if _usable(near) else ""),
        )
    found = re.sub(r"[-_]", "", short)
    if not _usable(found):
        if keyword.iskeyword(found):
            reason = "it is a word of the Python language"
        elif found in RESERVED:
            reason = "kdbench uses it itself"
        else:
            reason = f"it has more than {LONGEST} letters"
        raise KdbenchError(f"'{found}' cannot name a plugin: {reason}", where="NAME", cure="take another name")
    return found


def _usable(found: str) -> bool:
    return found.isidentifier() and not keyword.iskeyword(found) and found not in RESERVED and len(found) <= LONGEST


def _line(option: str, text: str | None) -> str | None:
    """``text`` on one line, as TOML, Markdown and package metadata can all hold it."""
    if text is None:
        return None
    line = " ".join(text.split())
    if not line:
        raise KdbenchError("the text is empty", where=option, cure="leave the option out: a placeholder is written")
    if not line.isprintable():
        raise KdbenchError(
            f"the text holds a character that cannot be printed: {line!a}", where=option, cure="write it without"
        )
    return line


def _refuse_taken(plugin: NewPlugin) -> None:
    from kdbench.plugins import registry

    found = registry()
    owner = found.owner("papers", plugin.paper) if plugin.paper in found.papers else None
    for info in found.plugins:
        plain = re.sub(r"[-_.]+", "-", info.distribution).lower()
        if info is owner or info.name == plugin.paper or plain == plugin.distribution:
            raise KdbenchError(
                f"'{plugin.paper}' is taken by an installed plugin",
                where=f"{info.distribution} {info.version}".strip(),
                cure=f"take another name, or 'pip uninstall {info.distribution}' first",
            )
