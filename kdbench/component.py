"""Typed values that travel as JSON: a frozen msgspec struct, written together with its import path.

A recipe, a schedule, an objective or a stage is a small frozen struct in somebody's module. :func:`pack` writes it as
``{"type": "module:Class", ...fields}`` and :func:`unpack` reads it back in any process, so nothing live is ever
pickled and a plugin's own classes need no registration.
"""

from __future__ import annotations

import importlib
import typing
from typing import Any

import msgspec

from kdbench.errors import KdbenchError

__all__ = ["Component", "load_object", "pack", "unpack"]


class Component(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every typed value that a stage's identity is made of. Fields are plain values or Components."""


def load_object(path: str) -> Any:
    """The object that ``module:name`` names.

    Raises
    ------
    KdbenchError : the module cannot be imported or has no such name.
    """
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise KdbenchError(
            f"cannot load '{path}': {error}", cure="is the plugin that provides it installed?"
        ) from error


def pack(value: Any) -> Any:
    """``value`` as plain JSON data; every Component in it carries its import path under ``type``."""
    if isinstance(value, Component):
        kind = type(value)
        fields = {name: pack(getattr(value, name)) for name in kind.__struct_fields__}
        return {"type": f"{kind.__module__}:{kind.__qualname__}", **fields}
    if isinstance(value, (list, tuple)):
        return [pack(item) for item in value]
    if isinstance(value, dict):
        return {str(key): pack(item) for key, item in value.items()}
    return msgspec.to_builtins(value)


def unpack(data: dict[str, Any]) -> Any:
    """The Component that :func:`pack` wrote; its fields are checked against their annotations."""
    kind = load_object(data["type"])
    if not (isinstance(kind, type) and issubclass(kind, Component)):
        raise KdbenchError(f"'{data['type']}' is not a kdbench Component")
    hints = typing.get_type_hints(kind)
    fields: dict[str, Any] = {}
    for name, item in data.items():
        if name == "type":
            continue
        if name not in hints:
            raise KdbenchError(f"'{data['type']}' has no field '{name}'", cure="was it written by another version?")
        fields[name] = _read(item, hints[name])
    try:
        return kind(**fields)
    except TypeError as error:  # a field without default is missing
        raise KdbenchError(f"'{data['type']}': {error}", cure="was it written by another version?") from error


def _read(item: Any, hint: Any) -> Any:
    if _is_packed(item):
        return unpack(item)
    if isinstance(item, list) and any(_is_packed(part) for part in item):
        return (list if typing.get_origin(hint) is list else tuple)(_read(part, Any) for part in item)
    if isinstance(item, dict) and any(_is_packed(part) for part in item.values()):
        return {key: _read(part, Any) for key, part in item.items()}
    try:
        return msgspec.convert(item, hint, strict=False)
    except msgspec.ValidationError as error:
        raise KdbenchError(f"a stage parameter does not fit its type: {error}") from error


def _is_packed(item: Any) -> bool:
    return isinstance(item, dict) and ":" in str(item.get("type", ""))
