"""What ``ptxas -v`` says of kernels: registers, stack and spills. setup.py and the tests load it by its path."""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["Resources", "read_report"]

_ENTRY = re.compile(
    r"Compiling entry function '(?P<symbol>\w+)' for '(?P<arch>sm_\w+)'"
    r".*?(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads"
    r".*?Used (?P<registers>\d+) registers",
    re.DOTALL,
)


class Resources(NamedTuple):
    """One kernel on one architecture; stack and spills in bytes a thread."""

    kernel: str
    arch: str
    registers: int
    stack: int
    spilled: int


def read_report(text: str) -> list[Resources]:
    """Every kernel that a compiler's output reports on."""
    return [
        Resources(
            readable(found["symbol"]),
            found["arch"],
            int(found["registers"]),
            int(found["stack"]),
            int(found["stores"]) + int(found["loads"]),
        )
        for found in _ENTRY.finditer(text)
    ]


def readable(symbol: str) -> str:
    """``dense_kernel<Bf16, true>`` of a mangled name; the name itself where it is another kind of name."""
    found = re.search(r"\d([a-z_]+_kernel)(?:I((?:NS\d*_4[BF][fp]16E|Lb[01]E|[fd])+)E)?", symbol)
    if found is None:
        return symbol
    words = {"f": "float", "d": "double", "Bf16": "Bf16", "Fp16": "Fp16", "Lb0": "false", "Lb1": "true"}
    arguments = [words[each] for each in re.findall(r"[BF][fp]16|Lb[01]|[fd]", found[2] or "")]
    return found[1] + (f"<{', '.join(arguments)}>" if arguments else "")
