# SPDX-License-Identifier: Apache-2.0
"""The ranges of numbers: both ends of each, as a reader of manifests takes them."""

from __future__ import annotations

import math
from typing import Annotated, Any, get_args, get_origin

import msgspec
import pytest
from msgspec import Meta

from fastmmoe.exporter.ops.sparse_moe.contract import SPARSE_MOE
from fastmmoe.runtime import ranges
from fastmmoe.runtime.ranges import limits

KINDS = {name: kind for name, kind in vars(ranges).items() if get_origin(kind) is Annotated}


def is_taken(value: float, kind: Any) -> bool:
    """Whether a struct's field of this kind takes the value."""
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return False
    return True


@pytest.mark.parametrize("name", KINDS)
def test_both_ends(name: str) -> None:
    kind = KINDS[name]
    least, is_outside, greatest = limits(kind)
    is_float = get_args(kind)[0] is float

    def beside(value: float, direction: int) -> float:
        return math.nextafter(value, direction * math.inf) if is_float else value + direction

    assert least < greatest
    assert is_taken(least, kind) is not is_outside
    assert is_taken(beside(least, 1), kind)
    assert not is_taken(beside(least, -1), kind)
    assert is_taken(greatest, kind)
    assert not is_taken(beside(greatest, 1), kind)


@pytest.mark.parametrize("name", KINDS)
def test_what_is_no_number(name: str) -> None:
    for value in (None, "1", True, math.nan, math.inf, -math.inf):
        assert not is_taken(value, KINDS[name]), value  # type: ignore[arg-type]


def test_a_few_of_them_stay_within_64_bits() -> None:
    """Of the products that sizes of tensors and bytes are made from."""
    greatest = {name: limits(kind)[2] for name, kind in KINDS.items()}
    for names in (
        ("VocabSize", "Width"),
        ("Experts", "Width", "Width"),
        ("Positions", "Width"),
        ("Tiles", "Positions"),
    ):
        assert math.prod(int(greatest[name]) for name in names) < 1 << 63, names


def test_a_kind_needs_both_ends() -> None:
    assert limits(Annotated[int, Meta(gt=0, le=3)]) == (0, True, 3)
    assert limits(Annotated[int, Meta(ge=0, le=3)]) == (0, False, 3)
    for meta in (Meta(ge=0), Meta(le=3)):
        with pytest.raises(AssertionError, match="lacks a limit"):
            limits(Annotated[int, meta])


def test_experts_and_groups_are_those_of_the_operator() -> None:
    of_operator = {attribute.name: attribute.limits for attribute in SPARSE_MOE.attributes}
    for name, kind in (("top_k", ranges.ExpertsPerToken), ("n_group", ranges.ExpertGroups)):
        least, is_outside, greatest = limits(kind)
        assert (least, greatest) == of_operator[name] and not is_outside
