# SPDX-License-Identifier: Apache-2.0
"""Tests of one group run on one worker, or what they share would be made by each."""

from __future__ import annotations

import pytest


@pytest.fixture
def group(request: pytest.FixtureRequest) -> str:
    """Of the test, as the scheduler knows it."""
    if not request.config.getoption("loadgroup", False):
        pytest.skip("needs pytest -n 2 --dist loadgroup, as make test runs it")
    return str(request.node.nodeid).rpartition("@")[2]


@pytest.mark.xdist_group("probe")
def test_groups_reach_the_scheduler(group: str) -> None:
    assert group == "probe"


def test_a_file_is_a_group(group: str) -> None:
    assert group == "tests/test_groups.py"
