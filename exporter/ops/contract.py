# SPDX-License-Identifier: Apache-2.0
"""Contracts of custom operators: read by the ONNX schema, the tests, the native libraries and the docs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

DOMAIN = "fastmmoe"
LAYOUT, TILES = "weight_layout", "tiles"
"""The attribute by which weights have another order, and that order."""

AttributeValue = int | float | str
Attributes = dict[str, AttributeValue]


@dataclass(frozen=True)
class Dimension:
    """(number + sum of factor * letter) / divisor, rounded up: "T", "1", "2I", "H/p" or "T-V+K"."""

    text: str
    number: int
    terms: tuple[tuple[int, str], ...]
    divisor: str

    @classmethod
    def parse(cls, text: str) -> Dimension:
        sum_, _, divisor = text.partition("/")
        terms, number = [], 0
        for sign, factor, letter in re.findall(r"([+-]?)(\d*)([A-Za-z]?)", sum_):
            value = int(f"{sign}{factor or 1}")
            if letter:
                terms.append((value, letter))
            elif factor:
                number += value
        return cls(text, number, tuple(terms), divisor)

    def evaluate(self, sizes: Mapping[str, int]) -> int | None:
        """Its size, None where a letter is not known."""
        if any(letter not in sizes for _, letter in self.terms):
            return None
        value = self.number + sum(factor * sizes[letter] for factor, letter in self.terms)
        return -(-value // sizes[self.divisor]) if self.divisor else value

    def solve(self, size: int) -> tuple[str, int, bool] | None:
        """Letter, its size and whether that is exact, where the dimension has one letter and no divisor."""
        if self.divisor or len(self.terms) != 1:
            return None
        factor, letter = self.terms[0]
        return letter, (size - self.number) // factor, (size - self.number) % factor == 0


@dataclass(frozen=True)
class Size:
    """The legal sizes of a dimension letter. All that a kernel computes of them must fit into 64 bits."""

    letter: str
    least: int
    greatest: int
    doc: str


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
        only_if: attribute and its values with which a node has this tensor; None = always. Such tensors come last, and
            a node leaves no gap for those it does not have.
        unless: attribute and its values with which a node does not have it, instead of only_if.
        alias: of an output: the input that it is with some rows written; both may have one address.
        tiled: its shape where the attribute weight_layout is tiles; empty = the same.
    """

    name: str
    shape: tuple[str, ...]
    types: tuple[str, ...]
    doc: str
    only_if: tuple[str, tuple[AttributeValue, ...]] | None = None
    unless: tuple[str, tuple[AttributeValue, ...]] | None = None
    alias: str | None = None
    tiled: tuple[str, ...] = ()

    def shape_with(self, attributes: Attributes) -> tuple[str, ...]:
        """The shape that a node with these attributes asks for."""
        is_tiled = attributes.get(LAYOUT) == TILES
        return self.tiled if is_tiled and self.tiled else self.shape

    @property
    def is_conditional(self) -> bool:
        """Whether there are nodes without it."""
        return self.only_if is not None or self.unless is not None

    def is_of(self, attributes: Attributes) -> bool:
        """Whether a node with these attributes has it."""
        if self.unless is not None:
            return attributes[self.unless[0]] not in self.unless[1]
        return self.only_if is None or attributes[self.only_if[0]] in self.only_if[1]


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
class Constant:
    """A number of the method, the same on every processor.

    Args:
        kind: the C++ type in which it enters a computation.
        doc: one line.
    """

    name: str
    value: float
    kind: Literal["float", "double", "int64_t"]
    doc: str


@dataclass(frozen=True)
class Binding:
    """What inputs that the contract allows have in common: types by type variable, sizes by dimension letter."""

    types: dict[str, str]
    sizes: dict[str, int]


@dataclass(frozen=True)
class OpSpec:
    """The contract of one operator of the domain `fastmmoe`.

    Args:
        folder: where its files are, in exporter/ops and in plugins; also its C++ namespace.
        sizes: limits of every letter that an input can tell.
        constants: numbers that every kernel of the operator uses.
        rule: what is wrong with attributes that are legal one by one, or None.
        input_rule: what is wrong with inputs that are legal one by one, or None.
        known_sizes: the letters that attributes alone give.
    """

    name: str
    folder: str
    version: int
    doc: str
    type_variables: dict[str, tuple[str, ...]]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    attributes: tuple[Attribute, ...]
    sizes: tuple[Size, ...]
    constants: tuple[Constant, ...] = ()
    rule: Callable[[Attributes], str | None] = lambda attributes: None
    input_rule: Callable[[Attributes, Binding], str | None] = lambda attributes, binding: None
    known_sizes: Callable[[Attributes], dict[str, int]] = lambda attributes: {}

    def inputs_for(self, attributes: Attributes) -> tuple[Tensor, ...]:
        """The inputs a node with these attributes has, in order."""
        return tuple(t for t in self.inputs if t.is_of(attributes))

    def outputs_for(self, attributes: Attributes) -> tuple[Tensor, ...]:
        """The outputs a node with these attributes has, in order."""
        return tuple(t for t in self.outputs if t.is_of(attributes))

    def attribute(self, name: str) -> Attribute:
        """The attribute of this name."""
        return next(attribute for attribute in self.attributes if attribute.name == name)

    def check_attributes(self, attributes: Attributes) -> None:
        """Raise ValueError unless exactly the contract's attributes are given, with legal values."""
        names = [a.name for a in self.attributes]
        if sorted(attributes) != sorted(names):
            raise ValueError(f"{self.name}: attributes {sorted(attributes)}, expected exactly {sorted(names)}")
        wrong = next(filter(None, (a.check(attributes[a.name]) for a in self.attributes)), None) or self.rule(
            attributes
        )
        if wrong:
            raise ValueError(f"{self.name}: {wrong}")

    def wrong_size(self, letter: str, size: int) -> str | None:
        """What is wrong with the size of a dimension, or None; of a letter that attributes alone give nothing is."""
        limits = next((limits for limits in self.sizes if limits.letter == letter), None)
        if limits is None or limits.least <= size <= limits.greatest:
            return None
        return f"{letter} is {size}, expected {limits.least} to {limits.greatest}"

    def check_inputs(self, attributes: Attributes, inputs: Mapping[str, Any]) -> Binding:
        """Bind the element types and shapes of a node's inputs, arrays or torch tensors by name.

        Raises:
            ValueError: the message says which type, rank or size the contract does not allow, as the native libraries
                say it.
        """
        expected = self.inputs_for(attributes)
        if list(inputs) != [t.name for t in expected]:
            names = ", ".join(t.name for t in expected)
            raise ValueError(
                f"{self.name}: {len(inputs)} inputs, expected with these attributes are {len(expected)}: {names}"
            )
        binding = Binding({}, dict(self.known_sizes(attributes)))
        for tensor in expected:
            wrong = self._bind_type(tensor, inputs[tensor.name], binding) or self._bind_shape(
                tensor, tensor.shape_with(attributes), list(inputs[tensor.name].shape), binding
            )
            if wrong:
                raise ValueError(f"{self.name}: {wrong}")
        wrong = self.input_rule(attributes, binding)
        if wrong:
            raise ValueError(f"{self.name}: {wrong}")
        return binding

    def _bind_type(self, tensor: Tensor, value: Any, binding: Binding) -> str | None:
        element_type = str(value.dtype).removeprefix("torch.").replace("float32", "float")
        (variable,) = tensor.types
        allowed = self.type_variables.get(variable, tensor.types)
        if element_type not in allowed:
            return f"{tensor.name} is {element_type}, expected {' or '.join(allowed)}"
        bound = binding.types.setdefault(variable, element_type)
        if element_type != bound:
            return f"{tensor.name} is {element_type}, expected {bound} as the other tensors of type {variable}"
        return None

    def _bind_shape(self, tensor: Tensor, expected: tuple[str, ...], shape: list[int], binding: Binding) -> str | None:
        if len(shape) != len(expected):
            return f"{tensor.name} is {shape}, expected rank {len(expected)}: [{', '.join(expected)}]"
        for dimension, size in zip(map(Dimension.parse, expected), shape, strict=True):
            solved = dimension.solve(size)
            if solved is not None and solved[0] not in binding.sizes:
                letter, value, fits = solved
                wrong = self.wrong_size(letter, value)
                if fits and wrong:
                    return f"{wrong} ({tensor.name} is {shape})"
                if fits:
                    binding.sizes[letter] = value
            else:
                fits = dimension.evaluate(binding.sizes) == size
            if not fits:
                return f"{tensor.name} is {shape}, expected {_expected_shape(expected, binding.sizes)}"
        return None

    def encode(self, attributes: Attributes) -> str:
        """The checked attributes as one string: torch operators carry them so, and need not list them again."""
        self.check_attributes(attributes)
        return json.dumps(attributes, sort_keys=True)

    def decode(self, text: str) -> Attributes:
        """The attributes of `encode`, checked again."""
        attributes: Attributes = json.loads(text)
        self.check_attributes(attributes)
        return attributes


def _expected_shape(shape: tuple[str, ...], sizes: dict[str, int]) -> str:
    """ "[E, 2I, H] = [16, 2I, 24]" where I is not known yet."""
    known = ((dimension.text, dimension.evaluate(sizes)) for dimension in map(Dimension.parse, shape))
    return f"[{', '.join(shape)}] = [{', '.join(text if n is None else str(n) for text, n in known)}]"


def check_rows(op: str, name: str, rows: npt.NDArray[Any], T: int) -> None:
    """Raise ValueError unless the values of an index into T rows ascend and are rows."""
    outside = np.flatnonzero((rows < 0) | (rows >= T))
    falling = 1 + np.flatnonzero(rows[1:] <= rows[:-1])
    if outside.size and not (falling.size and falling[0] < outside[0]):
        raise ValueError(f"{op}: {name}[{outside[0]}] is {rows[outside[0]]}, expected 0 to {T - 1}")
    if falling.size:
        i = falling[0]
        raise ValueError(f"{op}: {name}[{i}] is {rows[i]} after {rows[i - 1]}, expected ascending rows")
