# SPDX-License-Identifier: Apache-2.0
"""Tests of one group run on one worker, or what they share would be made by each."""

from __future__ import annotations

import pytest


@pytest.mark.xdist_group("probe")
def test_groups_reach_the_scheduler(request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("loadgroup", False):
        pytest.skip("needs pytest -n 2 --dist loadgroup, as make test runs it")
    assert request.node.nodeid.endswith("@probe")
