# SPDX-License-Identifier: Apache-2.0
"""How far rounding moves what runs, and which bundles round."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from fastmmoe.exporter.check.prompts import Outcome
from fastmmoe.exporter.check.rounding import (
    logits_difference,
    relative,
    same_choices,
)
from fastmmoe.runtime.bundle.manifest import Manifest
from tests.support.manifests import manifest_document

INT8 = {"weight_format": "int8", "group_size": 128, "zero_points": False}


@pytest.mark.parametrize(
    ("parts", "of_features", "of_logits"),
    [((), False, False), (("vision",), True, False), (("dense",), False, True), (("head",), False, True)],
)
def test_which_bundles_round(parts: tuple[str, ...], of_features: bool, of_logits: bool) -> None:
    document = manifest_document("deepseek_vl2")
    document["linears"] |= dict.fromkeys(parts, INT8)
    manifest = msgspec.convert(document, Manifest)
    assert ("vision" in manifest.operator_graphs, manifest.rounds_logits) == (of_features, of_logits)


def test_integers_round_on_a_cpu_alone() -> None:
    document = manifest_document("deepseek_vl2")
    document["experts"] |= {"weight_format": "int4", "group_size": 32}
    assert msgspec.convert(document, Manifest).rounds_logits
    tensor = {"dtype": "int8", "shape": [16, 16, 4], "offset": 0}
    document["experts"] |= {"inputs": {"layers.1.mlp.experts.gate_up": tensor}}
    document["linears"] |= dict.fromkeys(("dense", "head"), INT8)
    assert not msgspec.convert(document, Manifest).rounds_logits


def outcome(*logits: list[float]) -> Outcome:
    return Outcome([np.array([row], np.float32) for row in logits], [])


def test_logits_differ_without_their_mean() -> None:
    """A constant on all logits chooses nothing; of several calls the worst counts."""
    exact = outcome([3, -3], [4, -4])
    assert logits_difference(outcome([13, 7], [4, -4]), exact) == 0
    assert logits_difference(outcome([3, -3], [5, -5]), exact) == pytest.approx(0.25)
    assert same_choices(outcome([1, 0], [0, 1]), exact) == "1 of 2"


def test_of_nothing_the_difference_itself() -> None:
    zeros = np.zeros(3)
    assert relative(zeros, zeros) == 0
    assert relative(np.array([0, 3.0, 4.0]), zeros) == 5
    assert np.isnan(relative(np.array([np.nan, 0, 0]), np.ones(3)))
