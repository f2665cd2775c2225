"""Run a page of documentation: write the files it shows, run its commands, and hold what they print against the page.

Fenced blocks count: ``python``, ``toml`` and ``csv`` blocks whose first line is a comment with a path are files, other
``python`` blocks are programs, and ``console`` blocks are commands behind ``$``, each followed by what it prints, where
``[...]`` stands for anything.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import NamedTuple

from fresh import Fresh

__all__ = ["Block", "Walkthrough", "blocks"]

ELLIPSIS = "[...]"


class Block(NamedTuple):
    """One fenced block, and where its text begins."""

    language: str
    text: str
    line: int

    @property
    def path(self) -> str:
        """The file that the block is, or nothing."""
        found = re.match(r"# (\S+/\S+\.\w+)\n", self.text)
        return found[1] if found else ""


def blocks(page: Path) -> list[Block]:
    """Every fenced block of a page that has a language."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(r"^```(\w+)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [Block(match[1], match[2], text.count("\n", 0, match.start()) + 2) for match in found]


class Walkthrough:
    """A reader who does what the page says, in an environment of their own."""

    def __init__(self, environment: Fresh, folder: Path, variables: dict[str, str]) -> None:
        self.environment = environment
        self.folder = folder
        self.variables = variables

    def follow(self, block: Block) -> None:
        """Do what one block says."""
        if block.path:
            target = self.folder / block.path
            assert target.parent.is_dir(), f"line {block.line}: there is no folder for {block.path}"
            target.write_text(block.text if block.language != "csv" else block.text.partition("\n")[2])
        elif block.language == "python":
            self.environment.run("-c", block.text, cwd=self.folder, env=self.variables, check=0)
        elif block.language == "console":
            for command, expected in self._commands(block):
                printed = self._run(command)
                assert _matches(expected, printed), (
                    f"line {block.line}: {command}\nexpected:\n{expected}\nprinted:\n{printed}"
                )
        else:
            raise AssertionError(f"line {block.line}: a block of {block.language} that names no file")

    def _commands(self, block: Block) -> list[tuple[str, str]]:
        assert block.text.startswith("$ "), f"line {block.line}: a console block begins with a command"
        parts = re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]
        return [(command, expected) for command, _, expected in (part.partition("\n") for part in parts)]

    def _run(self, command: str) -> str:
        words = shlex.split(command)
        variables = dict(self.variables)
        while "=" in words[0]:
            name, _, value = words.pop(0).partition("=")
            variables[name] = value
        program, *arguments = words
        if program == "cd":
            self.folder = self.folder / arguments[0]
            return ""
        if program == "pip":
            assert arguments[0] == "install"
            self.environment.install(*arguments[1:], cwd=self.folder)
            return ""
        modules = {"kdbench": "kdbench", "pytest": "pytest"}
        # Told once more, where their defaults would be found in the repository that these tests run in.
        extra = ["-p", "no:cacheprovider"] if program == "pytest" else []
        done = self.environment.run(
            "-m", modules[program], *arguments, *extra, cwd=self.folder, env=variables, timeout=600
        )
        assert done.returncode == 0, f"exit {done.returncode}: {command}\n{done.stdout}\n{done.stderr}"
        return done.stdout


def _matches(expected: str, printed: str) -> bool:
    pattern = ".*".join(re.escape(part.strip("\n")) for part in expected.strip().split(ELLIPSIS))
    return re.fullmatch(rf"\s*{pattern}\s*", printed, flags=re.DOTALL) is not None
