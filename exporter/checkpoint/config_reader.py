# SPDX-License-Identifier: Apache-2.0
"""Reads config.json key by key: wrong types and unimplemented values raise, keys nobody asked for can be listed."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, overload

from fastmmoe.runtime.errors import UnsupportedModel
from fastmmoe.runtime.ranges import limits

T = TypeVar("T")

MOST_LISTED = 40
_ABSENT = object()
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxlong = _REPR.maxother = 80


class ConfigReader:
    """One JSON object of a configuration file.

    Kinds (`kind`) are types as in annotations: those of runtime/ranges.py for numbers (for a float, an int is accepted
    and converted), int, float, str, bool (never accepted as a number), list, dict, list[Pixels], list[list[Pixels]],
    and unions such as `Layers | None`, where None stands for a JSON null.

    Args:
        values: the parsed object.
        file: its name in messages.
        prefix: dotted path of this object within the file, "" for the whole.
    """

    def __init__(self, values: Mapping[str, Any], file: str = "config.json", prefix: str = "") -> None:
        self.values = values
        self.file = file
        self.prefix = prefix
        self._read: set[str] = set()
        self._sections: dict[str, ConfigReader] = {}

    @overload
    def get(self, key: str, default: T) -> T: ...
    @overload
    def get(self, key: str, default: Any, kind: Any) -> Any: ...
    def get(self, key: str, default: Any, kind: Any = _ABSENT) -> Any:
        """The value of `key`, or `default` where the file does not have the key.

        Args:
            default: give the default of the model's own configuration class.
            kind: expected type; by default the type of `default`. Name it for a default of None, and as
                `Layers | None` where the file may say null.
        Raises:
            UnsupportedModel: the value has another type (null included) or is outside the range of its kind.
        """
        self._read.add(key)
        value = self.values.get(key, _ABSENT)
        if value is _ABSENT:
            return default
        return self._checked(key, value, type(default) if kind is _ABSENT else kind)

    @overload
    def require(self, key: str) -> Any: ...
    @overload
    def require(self, key: str, kind: type[T]) -> T: ...
    @overload
    def require(self, key: str, kind: Any) -> Any: ...
    def require(self, key: str, kind: Any = object) -> Any:
        """The value of `key`, of any type unless `kind` is given.

        Raises:
            UnsupportedModel: the key is missing, or as for `get`.
        """
        self._read.add(key)
        if key not in self.values:
            expected = "a value" if kind is object else f"a value of type {_kind_name(kind)}"
            raise UnsupportedModel(f"{self.name(key)} is missing, expected {expected}")
        return self._checked(key, self.values[key], kind)

    def choice(self, key: str, allowed: Sequence[T], default: T) -> T:
        """The value of `key`, or `default` where the file does not have the key, if it is one of `allowed`.

        The default is checked too: some models' class defaults are values their code refuses.

        Raises:
            UnsupportedModel: the value is not one of `allowed`.
        """
        self._read.add(key)
        value = self.values.get(key, default)
        for candidate in allowed:
            if is_same(value, candidate):
                return candidate
        found = f"is {shown(value)}" if key in self.values else f"is missing, which means {value!r}"
        raise UnsupportedModel(f"{self.name(key)} {found}; supported: {', '.join(repr(a) for a in allowed)}")

    def section(self, key: str, *, optional: bool = False) -> ConfigReader:
        """The reader of the object under `key`, the same one at each call.

        Args:
            optional: an absent key counts as an empty object.
        Raises:
            UnsupportedModel: the key is missing (unless `optional`) or holds something else than an object.
        """
        if key not in self._sections:
            values = self.get(key, {}) if optional else self.require(key, dict)
            self._sections[key] = ConfigReader(values, self.file, self._path(key))
        return self._sections[key]

    def ignore(self, *keys: str) -> None:
        """Count keys as read that are known to be without effect, present or not."""
        self._read.update(keys)

    def check(self, key: str, value: T, is_legal: bool, expected: str) -> T:
        """`value`, which is that of `key`, if it goes together with other values.

        Raises:
            UnsupportedModel: it does not; the message holds what was expected.
        """
        if not is_legal:
            found = "is" if key in self.values else "is missing, which means"
            raise UnsupportedModel(f"{self.name(key)} {found} {shown(value)}, expected {expected}")
        return value

    def has_read(self, key: str) -> bool:
        """Whether anybody asked for the key, present or not."""
        return key in self._read

    def own_unread(self) -> list[str]:
        """The keys of this object that nobody asked for."""
        return [key for key in self.values if key not in self._read]

    def unread(self) -> list[str]:
        """Dotted names of the keys that nobody asked for, sorted, those of the opened sections included."""
        own = [self._path(key) for key in self.own_unread()]
        return sorted(own + [name for section in self._sections.values() for name in section.unread()])

    def name(self, key: str) -> str:
        """File and dotted path of a key, as messages name it."""
        return f"{self.file}: {self._path(key)}"

    def _path(self, key: str) -> str:
        # A damaged file's keys must not break a message's line.
        key = key if key.isprintable() and len(key) <= 80 else shown(key)
        return f"{self.prefix}.{key}" if self.prefix else key

    def _checked(self, key: str, value: Any, kind: Any) -> Any:
        if not _is_kind(value, kind):
            found = f"{shown(value)} ({_kind_name(type(value))})"
            raise UnsupportedModel(f"{self.name(key)} is {found}, expected a value of type {_kind_name(kind)}")
        if not _is_in_range(value, kind):
            raise UnsupportedModel(f"{self.name(key)} is {shown(value)}, expected {_range_name(kind)}")
        return _converted(value, kind)


def listed(names: list[str]) -> str:
    """Names of keys as messages list them."""
    more = f" and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else ""
    return ", ".join(names[:MOST_LISTED]) + more


def shown(value: Any) -> str:
    """A value of a file as messages show it: on one line, short however large or deep it is."""
    return ascii(text) if not (text := _REPR.repr(value)).isprintable() else text


def is_same(one: Any, other: Any) -> bool:
    """Whether two values of a file are equal, True and 1 apart; too deep to compare = not."""
    try:
        return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)
    except RecursionError:
        return False


def _options(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _plain(kind: Any) -> Any:
    """The type of a kind without its range."""
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def _is_kind(value: Any, kind: Any) -> bool:
    if len(options := _options(kind)) > 1:
        return any(_is_kind(value, option) for option in options)
    kind = _plain(kind)
    if get_origin(kind) is list:
        (element,) = get_args(kind)
        return isinstance(value, list) and all(_is_kind(v, element) for v in value)
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def _is_in_range(value: Any, kind: Any) -> bool:
    """Whether a value of the kind's type is within its range; NaN never is."""
    if len(options := _options(kind)) > 1:
        return any(_is_kind(value, option) and _is_in_range(value, option) for option in options)
    if get_origin(kind) is list:
        (element,) = get_args(kind)
        return all(_is_in_range(v, element) for v in value)
    if get_origin(kind) is not Annotated:
        return True
    low, is_open, high = limits(kind)
    return (low < value if is_open else low <= value) and value <= high


def _converted(value: Any, kind: Any) -> Any:
    """The value, an int as a float where the kind is one."""
    (kind,) = [option for option in _options(kind) if _is_kind(value, option)][:1]
    if get_origin(kind) is list:
        (element,) = get_args(kind)
        return [_converted(v, element) for v in value]
    return float(value) if _plain(kind) is float else value


def _kind_name(kind: Any) -> str:
    kind = _plain(kind)
    if kind is type(None):
        return "null"
    if len(options := _options(kind)) > 1:
        return " or ".join(_kind_name(option) for option in options)
    if get_origin(kind) is list:
        return f"list[{_kind_name(get_args(kind)[0])}]"
    return str(kind.__name__)


def _range_name(kind: Any) -> str:
    if len(options := _options(kind)) > 1:
        return " or ".join(_range_name(option) for option in options)
    if get_origin(kind) is list:
        return f"a list of {_range_name(get_args(kind)[0])}"
    if get_origin(kind) is not Annotated:
        return _kind_name(kind)
    low, is_open, high = limits(kind)
    least, greatest = (f"{limit:,}" if isinstance(limit, int) else f"{limit:g}" for limit in (low, high))
    return f"more than {least}, up to {greatest}" if is_open else f"{least} to {greatest}"
