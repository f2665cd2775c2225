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
    found = re.search(r"\d([a-z_]+_kernel)(?:I(\w+?)EEv)?", symbol)
    if found is None:
        return symbol
    arguments = re.findall(r"\d(Bf16|Fp16)E?|(f)(?=L|$)|Lb([01])E?", found[2] or "")
    words = [half or ("float" if single else ("false", "true")[int(switch)]) for half, single, switch in arguments]
    return found[1] + (f"<{', '.join(words)}>" if words else "")
