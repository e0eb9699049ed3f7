# SPDX-License-Identifier: Apache-2.0
"""The cases of both operators, one after the other; the program that multiplies with weights in tile order."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.operator_cases import MOE_CASES, PACKED_PRUNE_CASES, PRUNE_CASES, MoeCase, PruneCase
from tests.support.operators import GOLDEN_PRUNE_CASES, GoldenPruneCase
from tests.support.operators import golden_prune_case as read_golden_prune_case
from tests.support.panels_host import PanelsHost
from tests.support.software_tiles import AVX2, missing_flags, software_tiles


@pytest.fixture(scope="session")
def panels(tmp_path_factory: pytest.TempPathFactory) -> PanelsHost:
    """The kernels of every instruction set, AMX's in software where the processor has AVX2: compiled once for all."""
    settings = [] if missing_flags(AVX2) else software_tiles()
    return PanelsHost(tmp_path_factory.mktemp("panels"), settings)


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
