# SPDX-License-Identifier: Apache-2.0
"""The cases of both operators, one after the other."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.operator_cases import MOE_CASES, PACKED_PRUNE_CASES, PRUNE_CASES, MoeCase, PruneCase
from tests.support.operators import GOLDEN_PRUNE_CASES, GoldenPruneCase
from tests.support.operators import golden_prune_case as read_golden_prune_case


@pytest.fixture(params=MOE_CASES)
def moe_case(request: pytest.FixtureRequest) -> MoeCase:
    """Inputs and attributes of FmmSparseMoE, one case after the other; read them, do not change them."""
    return MOE_CASES[request.param]


@pytest.fixture(params=PACKED_PRUNE_CASES)
def packed_prune_case(request: pytest.FixtureRequest) -> PruneCase:
    """The cases of several sequences."""
    return PACKED_PRUNE_CASES[request.param]


@pytest.fixture(params=PRUNE_CASES)
def prune_case(request: pytest.FixtureRequest) -> PruneCase:
    """Inputs and attributes of FmmTokenPrune, one case after the other; read them, do not change them."""
    return PRUNE_CASES[request.param]


@pytest.fixture(params=range(GOLDEN_PRUNE_CASES))
def golden_prune_case(request: pytest.FixtureRequest, golden: Path) -> GoldenPruneCase:
    """One recorded case after the other."""
    return read_golden_prune_case(golden, request.param)
