# SPDX-License-Identifier: Apache-2.0
"""What one custom operator takes and gives: read by the ONNX schema, the tests, the native libraries and the docs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

DOMAIN = "fastmmoe"

AttributeValue = int | float | str


@dataclass(frozen=True)
class Tensor:
    """One input or output.

    Args:
        name: its name in the schema, in error messages and in the docs.
        shape: dimension letters of the specification, for example ("T", "H").
        types: ONNX element types it may have, for example ("float", "float16"). An entry of a single
            capital letter ("F") is a type variable: equal letters must have equal types.
        doc: one line.
        only_if: attribute and value on which the presence of this (trailing) input depends; None = always there.
    """

    name: str
    shape: tuple[str, ...]
    types: tuple[str, ...]
    doc: str
    only_if: tuple[str, AttributeValue] | None = None


@dataclass(frozen=True)
class Attribute:
    """One attribute. Every attribute is always written by the exporter; there are no defaults.

    Args:
        choices: the legal values of a string attribute, or (minimum, maximum) of a number; empty = any.
    """

    name: str
    kind: Literal["int", "float", "string"]
    doc: str
    choices: tuple[AttributeValue, ...] = ()


@dataclass(frozen=True)
class OpSpec:
    """The contract of one operator of the domain `fastmmoe`."""

    name: str
    version: int
    doc: str
    type_variables: dict[str, tuple[str, ...]]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    attributes: tuple[Attribute, ...]

    def inputs_for(self, attributes: dict[str, AttributeValue]) -> tuple[Tensor, ...]:
        """The inputs a node with these attributes has, in order."""
        return tuple(t for t in self.inputs if t.only_if is None or attributes[t.only_if[0]] == t.only_if[1])

    def check_attributes(self, attributes: dict[str, AttributeValue]) -> None:
        """Raise ValueError unless exactly the contract's attributes are given, with legal values."""
        names = [a.name for a in self.attributes]
        if sorted(attributes) != sorted(names):
            raise ValueError(f"{self.name}: attributes {sorted(attributes)}, expected exactly {sorted(names)}")
        python = {"int": int, "float": float, "string": str}
        for a in self.attributes:
            value = attributes[a.name]
            if not isinstance(value, python[a.kind]):
                raise ValueError(f"{self.name}: attribute {a.name} is {value!r}, expected a value of type {a.kind}")
            if a.kind == "string" and a.choices and value not in a.choices:
                raise ValueError(f"{self.name}: attribute {a.name} is {value!r}, supported are {list(a.choices)}")
            if a.kind != "string" and a.choices:
                low, high = a.choices
                assert not isinstance(low, str) and not isinstance(high, str)
                if not low <= value <= high:  # type: ignore[operator]
                    raise ValueError(f"{self.name}: attribute {a.name} is {value!r}, expected {low} to {high}")

    def encode(self, attributes: dict[str, AttributeValue]) -> str:
        """The checked attributes as one string: torch operators carry them so, and need not list them again."""
        self.check_attributes(attributes)
        return json.dumps(attributes, sort_keys=True)

    def decode(self, text: str) -> dict[str, AttributeValue]:
        """The attributes of `encode`, checked again."""
        attributes = json.loads(text)
        self.check_attributes(attributes)
        return attributes
