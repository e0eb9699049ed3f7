# SPDX-License-Identifier: Apache-2.0
"""Which settings there are, and what is refused before a bundle is loaded."""

from __future__ import annotations

from typing import Any

import pytest

from fastmmoe.runtime.bench.settings import RETENTIONS, BenchOptions, Setting, retentions_for
from fastmmoe.runtime.errors import InvalidRequest
from tests.support.policies import DEEPSEEK, NO_METHOD


def test_by_default_every_retention_once() -> None:
    assert BenchOptions().settings() == [Setting(1.0), Setting(0.5), Setting(0.25)]


def test_a_bundle_in_which_nothing_is_pruned_has_one_retention() -> None:
    assert DEEPSEEK.default_method == "fastmmoe"
    assert retentions_for(DEEPSEEK) == retentions_for(DEEPSEEK, "random") == RETENTIONS
    assert retentions_for(DEEPSEEK, "none") == retentions_for(NO_METHOD) == (1.0,)


def test_lists_are_multiplied_but_batches_with_requests_at_once() -> None:
    options = BenchOptions(retentions=(1.0, 0.5), depths=(100, 200), batches=(1, 4), concurrencies=(1, 2))
    found = options.settings()
    assert len(found) == 2 * 2 * 3 == len(set(found))
    assert {(one.batch, one.concurrency) for one in found} == {(1, 1), (4, 1), (1, 2)}


def test_requests_at_once_stand_beside_one_alone() -> None:
    assert {one.batch for one in BenchOptions(batches=(4,)).settings()} == {4}
    assert {(one.batch, one.concurrency) for one in BenchOptions(concurrencies=(2,)).settings()} == {(1, 1), (1, 2)}


def test_what_is_given_twice_is_run_once() -> None:
    assert BenchOptions(retentions=(0.5, 0.5), batches=(1, 1)).settings() == [Setting(0.5)]


def test_options_of_a_request() -> None:
    request = BenchOptions(method="random", max_tiles=2, new_tokens=7).request(0.5)
    assert (request.retention, request.method, request.max_tiles, request.max_new_tokens) == (0.5, "random", 2, 7)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"retentions": (0.5, 2.0)}, r"retention 2\.0: expected"),
        ({"repetitions": 0}, r"^-n 0: expected 1 or more$"),
        ({"warmup": -1}, r"^--warmup -1: expected 0 or more$"),
        ({"new_tokens": 1}, r"^--new-tokens 1: expected 2 or more$"),
        ({"depths": (100, 0)}, r"^--depth 0: expected 1 or more$"),
        ({"batches": (0,)}, r"^--batch 0: expected 1 or more$"),
        ({"concurrencies": (1, 65)}, r"^--concurrency 65: expected at most 64$"),
        ({"max_tiles": 0}, r"max_tiles 0: expected"),
    ],
)
def test_what_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        BenchOptions(**given)
