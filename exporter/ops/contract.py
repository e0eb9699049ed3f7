# SPDX-License-Identifier: Apache-2.0
"""What one custom operator takes and gives: read by the ONNX schema, the tests, the native libraries and the docs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

DOMAIN = "fastmmoe"

AttributeValue = int | float | str


@dataclass(frozen=True)
class Tensor:
    """One input or output.

    Args:
        name: its name in the schema, in error messages and in the docs.
        shape: dimension letters of the specification, for example ("T", "H"), and expressions of them ("2I", "H/p";
            a division rounds up).
        types: ONNX element types it may have, for example ("float", "float16"). An entry of a single
            capital letter ("F") is a type variable: equal letters must have equal types.
        doc: one line.
        only_if: attribute and its values with which a node has this input; None = always. Such inputs come last, and
            a node leaves no gap for those it does not have.
    """

    name: str
    shape: tuple[str, ...]
    types: tuple[str, ...]
    doc: str
    only_if: tuple[str, tuple[AttributeValue, ...]] | None = None


@dataclass(frozen=True)
class Attribute:
    """One attribute. Every attribute is always written by the exporter; there are no defaults.

    Args:
        choices: the legal values; empty = any within limits.
        limits: the least and the greatest legal value of a number; None = any.
    """

    name: str
    kind: Literal["int", "float", "string"]
    doc: str
    choices: tuple[AttributeValue, ...] = ()
    limits: tuple[int, int] | None = None

    def check(self, value: AttributeValue) -> str | None:
        """What is wrong with a value, or None."""
        if not isinstance(value, {"int": int, "float": float, "string": str}[self.kind]):
            return f"attribute {self.name} is {value!r}, expected a value of type {self.kind}"
        if self.choices and value not in self.choices:
            return f"attribute {self.name} is {value!r}, supported are {list(self.choices)}"
        if self.limits is not None and not self.limits[0] <= value <= self.limits[1]:  # type: ignore[operator]
            return f"attribute {self.name} is {value!r}, expected {self.limits[0]} to {self.limits[1]}"
        return None


@dataclass(frozen=True)
class OpSpec:
    """The contract of one operator of the domain `fastmmoe`.

    `rule` gives what is wrong with attributes that are legal one by one, or None.
    """

    name: str
    version: int
    doc: str
    type_variables: dict[str, tuple[str, ...]]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    attributes: tuple[Attribute, ...]
    rule: Callable[[dict[str, AttributeValue]], str | None] = lambda attributes: None

    def inputs_for(self, attributes: dict[str, AttributeValue]) -> tuple[Tensor, ...]:
        """The inputs a node with these attributes has, in order."""
        return tuple(t for t in self.inputs if t.only_if is None or attributes[t.only_if[0]] in t.only_if[1])

    def check_attributes(self, attributes: dict[str, AttributeValue]) -> None:
        """Raise ValueError unless exactly the contract's attributes are given, with legal values."""
        names = [a.name for a in self.attributes]
        if sorted(attributes) != sorted(names):
            raise ValueError(f"{self.name}: attributes {sorted(attributes)}, expected exactly {sorted(names)}")
        wrong = next(filter(None, (a.check(attributes[a.name]) for a in self.attributes)), None) or self.rule(
            attributes
        )
        if wrong:
            raise ValueError(f"{self.name}: {wrong}")

    def encode(self, attributes: dict[str, AttributeValue]) -> str:
        """The checked attributes as one string: torch operators carry them so, and need not list them again."""
        self.check_attributes(attributes)
        return json.dumps(attributes, sort_keys=True)

    def decode(self, text: str) -> dict[str, AttributeValue]:
        """The attributes of `encode`, checked again."""
        attributes = json.loads(text)
        self.check_attributes(attributes)
        return attributes
