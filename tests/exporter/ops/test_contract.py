# SPDX-License-Identifier: Apache-2.0
"""What contracts of operators are made of: dimensions, attributes, and inputs bound to the letters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fastmmoe.exporter.ops.contract import Attribute, Binding, Dimension, OpSpec, Size, Tensor, check_rows

SPEC = OpSpec(
    name="Toy",
    folder="toy",
    version=1,
    doc="",
    type_variables={"F": ("float", "float16")},
    inputs=(
        Tensor("x", ("T", "H"), ("F",), ""),
        Tensor("y", ("2H", "T/p"), ("F",), ""),
        Tensor("z", ("H+1",), ("int32",), "", only_if=("mode", ("far", "near"))),
    ),
    outputs=(Tensor("out", ("T",), ("F",), ""),),
    attributes=(
        Attribute("mode", "string", "", choices=("off", "near", "far")),
        Attribute("count", "int", "", limits=(1, 9)),
        Attribute("factor", "float", ""),
    ),
    sizes=(Size("T", 0, 100, ""), Size("H", 1, 50, "")),
    rule=lambda a: "count is odd where mode is far" if a["mode"] == "far" and a["count"] == 3 else None,
    input_rule=lambda _, binding: "T is 13" if binding.sizes["T"] == 13 else None,
    known_sizes=lambda a: {"p": 2},
)
OFF: dict[str, Any] = {"mode": "off", "count": 1, "factor": 0.5}


def inputs(T: int = 5, H: int = 3, dtype: Any = np.float32, **others: Any) -> dict[str, Any]:
    return {"x": np.zeros((T, H), dtype), "y": np.zeros((2 * H, -(-T // 2)), dtype)} | others


@pytest.mark.parametrize(
    ("text", "size"),
    [("1", 1), ("T", 7), ("2I", 10), ("B+1", 4), ("T-V+K", 5), ("T/p", 4), ("2I/p", 5), ("I/q", None), ("Q+1", None)],
)
def test_sizes_of_a_dimension(text: str, size: int | None) -> None:
    """A division rounds up; a letter that is not known leaves the size open."""
    sizes = {"T": 7, "I": 5, "B": 3, "V": 4, "K": 2, "p": 2}
    dimension = Dimension.parse(text)
    if text == "I/q":
        with pytest.raises(KeyError, match="q"):  # divisors are known from the attributes
            dimension.evaluate(sizes)
        return
    assert dimension.evaluate(sizes) == size


@pytest.mark.parametrize(
    ("text", "size", "solution"),
    [
        ("T", 7, ("T", 7, True)),
        ("2I", 10, ("I", 5, True)),
        ("2I", 11, ("I", 5, False)),
        ("B+1", 1, ("B", 0, True)),
        ("1", 1, None),
        ("T-V+K", 5, None),
        ("H/p", 4, None),
    ],
)
def test_a_letter_from_a_size(text: str, size: int, solution: tuple[str, int, bool] | None) -> None:
    assert Dimension.parse(text).solve(size) == solution


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "on"}, r"attribute mode is 'on', supported are \['off', 'near', 'far'\]"),
        ({"mode": 1}, "attribute mode is 1, expected a value of type string"),
        ({"count": 0}, "attribute count is 0, expected 1 to 9"),
        ({"count": 10}, "attribute count is 10, expected 1 to 9"),
        ({"count": 1.0}, "attribute count is 1.0, expected a value of type int"),
        ({"factor": 1}, "attribute factor is 1, expected a value of type float"),
        ({"mode": "far", "count": 3}, "count is odd where mode is far"),
        (
            {"more": 1},
            r"attributes \['count', 'factor', 'mode', 'more'\], expected exactly \['count', 'factor', 'mode'",
        ),
    ],
)
def test_attributes_outside_the_contract(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^Toy: {message}"):
        SPEC.check_attributes(OFF | changes)
    with pytest.raises(ValueError, match=f"^Toy: {message}"):
        SPEC.encode(OFF | changes)


def test_attributes_travel_as_text() -> None:
    for attributes in (OFF, OFF | {"mode": "far", "count": 9, "factor": -1e-20}):
        assert SPEC.decode(SPEC.encode(attributes)) == attributes
    with pytest.raises(ValueError, match=r"^Toy: attributes \['mode'\], expected exactly"):
        SPEC.decode('{"mode": "off"}')


def test_inputs_that_only_some_nodes_have() -> None:
    assert [t.name for t in SPEC.inputs_for(OFF)] == ["x", "y"]
    assert [t.name for t in SPEC.inputs_for(OFF | {"mode": "near"})] == ["x", "y", "z"]
    assert SPEC.attribute("count").limits == (1, 9)


@pytest.mark.parametrize("T", [0, 1, 5, 100])
def test_arrays_and_tensors_are_bound_alike(T: int) -> None:
    expected = Binding({"F": "float16"}, {"p": 2, "T": T, "H": 3})
    arrays = inputs(T, dtype=np.float16)
    assert SPEC.check_inputs(OFF, arrays) == expected
    assert SPEC.check_inputs(OFF, {name: torch.from_numpy(array) for name, array in arrays.items()}) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (inputs(101), r"T is 101, expected 0 to 100 \(x is \[101, 3\]\)"),
        (inputs(H=0), r"H is 0, expected 1 to 50 \(x is \[5, 0\]\)"),
        (inputs(13), "T is 13$"),
        (inputs(dtype=np.float64), "x is float64, expected float or float16"),
        (inputs(y=np.zeros((6, 3), np.float16)), "y is float16, expected float as the other tensors of type F"),
        (inputs(y=np.zeros(6, np.float32)), r"y is \[6\], expected rank 2: \[2H, T/p\]"),
        (inputs(y=np.zeros((6, 2), np.float32)), r"y is \[6, 2\], expected \[2H, T/p\] = \[6, 3\]"),
        (inputs(y=np.zeros((7, 3), np.float32)), r"y is \[7, 3\], expected \[2H, T/p\] = \[6, 3\]"),
        (inputs(z=np.zeros(4, np.int32)), "3 inputs, expected with these attributes are 2: x, y"),
    ],
)
def test_inputs_outside_the_contract(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^Toy: {message}"):
        SPEC.check_inputs(OFF, given)


def test_a_letter_that_only_the_expected_shape_names_stays_open() -> None:
    sizes = (Size("E", 1, 9, ""), Size("I", 1, 9, ""))
    spec = OpSpec("Toy", "toy", 1, "", {}, (Tensor("w", ("E", "2I", "E"), ("float",), ""),), (), (), sizes)
    with pytest.raises(ValueError, match=r"^Toy: w is \[4, 5, 4\], expected \[E, 2I, E\] = \[4, 2I, 4\]$"):
        spec.check_inputs({}, {"w": np.zeros((4, 5, 4), np.float32)})


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], None),
        ([0, 3, 4], None),
        ([0, 5], r"i\[1\] is 5, expected 0 to 4"),
        ([-1, 0], r"i\[0\] is -1, expected 0 to 4"),
        ([1, 1], r"i\[1\] is 1 after 1, expected ascending rows"),
        ([2, 1, 9], r"i\[1\] is 1 after 2, expected ascending rows"),
        ([9, 8], r"i\[0\] is 9, expected 0 to 4"),
    ],
)
def test_rows_of_an_index(rows: list[int], message: str | None) -> None:
    """The first wrong one is named."""
    if message is None:
        check_rows("Toy", "i", np.array(rows, np.int32), 5)
        return
    with pytest.raises(ValueError, match=f"^Toy: {message}$"):
        check_rows("Toy", "i", np.array(rows, np.int32), 5)
