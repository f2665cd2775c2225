"""Components: whatever can be set must be in the hash, or two different trainings would be taken for one."""

from __future__ import annotations

import typing
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, TypeVar

from kdbench.component import Component, load_object, pack, unpack
from kdbench.stage import Spec

__all__ = ["leaves", "packed_parts", "parts", "unhashed"]

Part = TypeVar("Part", bound=Component)
Path = tuple[str | int, ...]


def packed_parts(value: Any) -> Iterator[dict[str, Any]]:
    """Every component in packed data, itself first."""
    if isinstance(value, dict):
        if _is_packed(value):
            yield value
        for item in value.values():
            yield from packed_parts(item)
    elif isinstance(value, list):
        for item in value:
            yield from packed_parts(item)


def parts(packed: dict[str, Any], kind: type[Part]) -> list[Part]:
    """The components of one kind in a packed stage, as objects."""
    kinds = ((part, load_object(part["type"])) for part in packed_parts(packed))
    return [unpack(part) for part, each in kinds if isinstance(each, type) and issubclass(each, kind)]


def leaves(value: Any, path: Path = (), *, nested: bool = False) -> Iterator[tuple[Path, Any]]:
    """Plain values in the fields of one packed component, with their paths; those of components in it if ``nested``."""
    if path and _is_packed(value) and not nested:
        return
    if isinstance(value, dict):
        for name, item in value.items():
            if not (name == "type" and _is_packed(value)):
                yield from leaves(item, (*path, name), nested=nested)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from leaves(item, (*path, number), nested=nested)
    else:
        yield path, value


def _is_packed(value: Any) -> bool:
    return isinstance(value, dict) and ":" in str(value.get("type", ""))


def unhashed(specs: Iterable[Spec]) -> list[str]:
    """Parameters that make no difference to the hash, although other values of them are accepted.

    Every plain value of every component is replaced by others in the packed data. Where all that are accepted come
    back as what was there before, a stage with another value has the same identity, and the store would give out one
    for the other. A field that ``__post_init__`` computes from the others is no parameter.
    """
    seen: dict[str, dict[str, Any]] = {}
    for spec in specs:
        for part in packed_parts(spec.stage):
            seen.setdefault(repr(part), part)
    findings: dict[str, None] = {}
    for part in seen.values():
        for path, value in leaves(part):
            if _ignored(part, path, value) and not _derived(part, path):
                name, kind = _written(path), str(part["type"]).partition(":")[2]
                findings[
                    f"the hash ignores the parameter '{name}' of {kind} ({part['type']}): whatever it is set to, it "
                    f"comes back as {value!r}; a component must keep what it is given, or refuse it"
                ] = None
    return list(findings)


def _ignored(part: dict[str, Any], path: Path, value: Any) -> bool:
    before = pack(unpack(part))
    accepted = 0
    for other in _others(part, path, value):
        try:
            after = pack(unpack(_replaced(part, path, other)))
        except Exception:  # the component refuses it, in whatever way
            continue
        if after != before:
            return False
        accepted += 1
    return accepted > 0


def _derived(part: dict[str, Any], path: Path) -> bool:
    """Whether the field need not be given, and follows one of the others."""
    name, rest = str(path[0]), {key: item for key, item in part.items() if key != path[0]}
    for other, value in leaves(rest):
        for instead in _others(rest, other, value):
            try:
                if pack(unpack(_replaced(rest, other, instead)))[name] != part[name]:
                    return bool(pack(unpack(rest)) == pack(unpack(part)))
            except Exception:  # refused, or missing where it has no default
                continue
    return False


def _others(part: dict[str, Any], path: Path, value: Any) -> list[Any]:
    """Values that differ from this one by more than rounding or clamping would undo."""
    return [other for other in _candidates(part, path, value) if other != value]


def _candidates(part: dict[str, Any], path: Path, value: Any) -> Sequence[Any]:
    if words := _words(part, path):
        return words
    if value is None:
        return [0.5, 1, True, "other"]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, value + 2, value * 2 + 6, max(value - 1, 0), max(value // 2, 1)]
    if isinstance(value, float):
        return [value / 2, value * 2, value + 0.25, value + 1, 0.75 * value, 0.5]
    return [f"{value}-other", "other"]


def _words(part: dict[str, Any], path: Path) -> tuple[Any, ...]:
    """The alternatives of a field that is annotated as a Literal, possibly among other types."""
    hint = typing.get_type_hints(load_object(part["type"])).get(str(path[0]))
    hints = (hint, *typing.get_args(hint))
    literals = [each for each in hints if typing.get_origin(each) is Literal]
    return tuple(word for each in literals for word in typing.get_args(each)) if len(path) == 1 else ()


def _replaced(part: Any, path: Path, value: Any) -> Any:
    if not path:
        return value
    copy: Any = dict(part) if isinstance(part, dict) else list(part)
    copy[path[0]] = _replaced(copy[path[0]], path[1:], value)
    return copy


def _written(path: Path) -> str:
    first, *rest = path
    return str(first) + "".join(f"[{step!r}]" for step in rest)
