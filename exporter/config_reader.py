# SPDX-License-Identifier: Apache-2.0
"""Reads config.json key by key: wrong types and unimplemented values raise, keys nobody asked for can be listed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, overload

from fastmmoe.runtime.errors import UnsupportedModel

T = TypeVar("T")

_ABSENT = object()


class ConfigReader:
    """One JSON object of a configuration file.

    Kinds (`kind`) are types as in annotations: int, float (an int is accepted and converted), str, bool (never
    accepted as a number), list, dict, list[int], list[list[int]], and unions such as `int | None`, where None stands
    for a JSON null.

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
    def get(self, key: str, default: T, *, minimum: float | None = None) -> T: ...
    @overload
    def get(self, key: str, default: Any, kind: Any, *, minimum: float | None = None) -> Any: ...
    def get(self, key: str, default: Any, kind: Any = _ABSENT, *, minimum: float | None = None) -> Any:
        """The value of `key`, or `default` where the file does not have the key.

        Args:
            default: give the default of the model's own configuration class.
            kind: expected type; by default the type of `default`. Name it for a default of None, and as
                `int | None` where the file may say null.
            minimum: smallest legal number.
        Raises:
            UnsupportedModel: the value has another type (null included) or is smaller than `minimum`.
        """
        self._read.add(key)
        value = self.values.get(key, _ABSENT)
        if value is _ABSENT:
            return default
        return self._checked(key, value, type(default) if kind is _ABSENT else kind, minimum)

    @overload
    def require(self, key: str) -> Any: ...
    @overload
    def require(self, key: str, kind: type[T], *, minimum: float | None = None) -> T: ...
    @overload
    def require(self, key: str, kind: Any, *, minimum: float | None = None) -> Any: ...
    def require(self, key: str, kind: Any = object, *, minimum: float | None = None) -> Any:
        """The value of `key`, of any type unless `kind` is given.

        Raises:
            UnsupportedModel: the key is missing, or as for `get`.
        """
        self._read.add(key)
        if key not in self.values:
            expected = "a value" if kind is object else f"a value of type {_kind_name(kind)}"
            raise UnsupportedModel(f"{self._name(key)} is missing, expected {expected}")
        return self._checked(key, self.values[key], kind, minimum)

    def choice(self, key: str, allowed: Sequence[T], default: T) -> T:
        """The value of `key`, or `default` where the file does not have the key, if it is one of `allowed`.

        The default is checked too: some models' class defaults are values their code refuses.

        Raises:
            UnsupportedModel: the value is not one of `allowed`.
        """
        self._read.add(key)
        value = self.values.get(key, default)
        # bool is compared by type, because True == 1.
        for candidate in allowed:
            if value == candidate and isinstance(value, bool) == isinstance(candidate, bool):
                return candidate
        found = f"is {value!r}" if key in self.values else f"is missing, which means {value!r}"
        raise UnsupportedModel(f"{self._name(key)} {found}; supported: {', '.join(repr(a) for a in allowed)}")

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

    def unread(self) -> list[str]:
        """Dotted names of the keys that nobody asked for, sorted, those of the opened sections included."""
        own = [self._path(key) for key in self.values if key not in self._read]
        return sorted(own + [name for section in self._sections.values() for name in section.unread()])

    def _path(self, key: str) -> str:
        return f"{self.prefix}.{key}" if self.prefix else key

    def _name(self, key: str) -> str:
        return f"{self.file}: {self._path(key)}"

    def _checked(self, key: str, value: Any, kind: Any, minimum: float | None) -> Any:
        if not _is_kind(value, kind):
            found = f"{value!r:.80} ({_kind_name(type(value))})"
            raise UnsupportedModel(f"{self._name(key)} is {found}, expected a value of type {_kind_name(kind)}")
        if minimum is not None and value is not None and not value >= minimum:
            raise UnsupportedModel(f"{self._name(key)} is {value!r}, expected at least {minimum}")
        return float(value) if kind is float else value


def _is_kind(value: Any, kind: Any) -> bool:
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        return any(_is_kind(value, option) for option in get_args(kind))
    if origin is list:
        (element,) = get_args(kind)
        return isinstance(value, list) and all(_is_kind(v, element) for v in value)
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def _kind_name(kind: Any) -> str:
    if kind is type(None):
        return "null"
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(_kind_name(option) for option in get_args(kind))
    return kind.__name__ if isinstance(kind, type) and get_origin(kind) is None else str(kind)
