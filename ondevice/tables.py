"""Strict reading of a parsed TOML or JSON table into frozen dataclasses.

The dataclass is the schema: its fields are the keys, its defaults are the defaults, its types are
checked. A key it does not have is an error that names the nearest one it has.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable
from typing import Any, TypeVar

from ondevice.errors import OndeviceError, nearest

T = TypeVar("T")
Fail = Callable[[str], OndeviceError]  # a message -> the error to raise, naming the file


def read_table(schema: type[T], table: object, fail: Fail, at: str = "") -> T:
    """The dataclass `schema` filled from `table`; `at` is the dotted path for messages.

    Field types may be str, int, float, bool, Literal[...], another dataclass, `tuple[X, ...]`,
    `tuple[tuple[str, X], ...]` (a table whose keys are free and whose order counts), and any of
    these `| None`. Raises what `fail` makes of the message.
    """
    if not isinstance(table, dict):
        raise fail(f"{at or 'the file'} must be a table, not {_describe(table)}")
    hints = typing.get_type_hints(schema)
    fields = {f.name: f for f in dataclasses.fields(schema)}  # type: ignore[arg-type]
    for key in table:
        if key not in fields:
            raise fail(f"unknown key {join(at, str(key))!r}{nearest(str(key), fields)}")
    values: dict[str, Any] = {}
    for name, field in fields.items():
        if name in table:
            values[name] = read_value(hints[name], table[name], fail, join(at, name))
        elif field.default is field.default_factory is dataclasses.MISSING:
            raise fail(f"key {join(at, name)!r} is missing")
    return schema(**values)


def read_value(kind: Any, value: object, fail: Fail, at: str) -> Any:
    """`value` as `kind`, one of the field types that `read_table` knows."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType or origin is typing.Union:
        inner = next(a for a in arguments if a is not type(None))
        return None if value is None else read_value(inner, value, fail, at)
    if origin is typing.Literal:
        if value not in arguments or not isinstance(value, str):
            raise fail(f"{at} = {value!r} must be one of {', '.join(map(str, arguments))}")
        return value
    if origin is tuple:
        return _read_tuple(arguments[0], value, fail, at)
    if dataclasses.is_dataclass(kind):
        return read_table(typing.cast(type, kind), value, fail, at)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        raise fail(f"{at} = {value!r} must be {_article(kind)}, not {_describe(value)}")
    return value


def convert_text(kind: Any, text: str, fail: Fail, at: str) -> Any:
    """`text` from a command line as `kind`.

    Lists are separated by commas; a table of free keys is written `key=value,key=value`.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        parts = [part.strip() for part in text.split(",") if part.strip()]
        if typing.get_origin(arguments[0]) is tuple:
            pairs = [part.partition("=") for part in parts]
            if any(not sign for _, sign, _ in pairs):
                raise fail(f"{at} = {text!r} must be written key=value,key=value")
            return tuple((key.strip(), value.strip()) for key, _, value in pairs)
        return tuple(convert_text(arguments[0], part, fail, at) for part in parts)
    value: object = text
    try:
        if kind is int:
            value = int(text)
        elif kind is float:
            value = float(text)
        elif kind is bool:
            value = {"true": True, "false": False}.get(text, text)
    except ValueError:
        pass  # left as text, so that read_value says what was expected
    return read_value(kind, value, fail, at)


def write_table(value: Any) -> dict[str, Any]:
    """The inverse of `read_table`: plain tables, lists and scalars; None is left out."""
    hints = typing.get_type_hints(type(value))
    fields = ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
    return {name: _plain(hints[name], item) for name, item in fields if item is not None}


def _plain(kind: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return write_table(value)
    if isinstance(value, tuple):
        item = typing.get_args(kind)[0]
        if typing.get_origin(item) is tuple:
            return {k: _plain(typing.get_args(item)[1], v) for k, v in value}
        return [_plain(item, v) for v in value]
    return value


def join(at: str, key: str) -> str:
    """`at.key`, or `key` at the top."""
    return f"{at}.{key}" if at else key


def _read_tuple(item: Any, value: object, fail: Fail, at: str) -> tuple[Any, ...]:
    if typing.get_origin(item) is tuple:  # tuple[tuple[str, X], ...]
        if not isinstance(value, dict):
            raise fail(f"{at} must be a table, not {_describe(value)}")
        kind = typing.get_args(item)[1]
        return tuple((k, read_value(kind, v, fail, join(at, k))) for k, v in value.items())
    if not isinstance(value, list):
        raise fail(f"{at} must be a list, not {_describe(value)}")
    return tuple(read_value(item, v, fail, f"{at}[{i}]") for i, v in enumerate(value))


_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


def _article(kind: type) -> str:
    return _NAMES.get(kind, kind.__name__)


def _describe(value: object) -> str:
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "a list"
    return _NAMES.get(type(value), "nothing" if value is None else type(value).__name__)
