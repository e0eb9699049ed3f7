# SPDX-License-Identifier: Apache-2.0
"""What may be chosen for a frame: retentions, tiles of each family, and the counted work."""

from __future__ import annotations

from typing import Any

import pytest

from fastmmoe.runtime.camera.settings import Settings, read_range, retentions_between
from fastmmoe.runtime.cost.flops import count_request
from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.request.options import RequestOptions
from tests.support.manifests import toy_manifest

DEEPSEEK, INTERNVL = toy_manifest("deepseek_vl2"), toy_manifest("internvl3_5")


def settings(manifest: Any = INTERNVL, retention: Any = (0.5, 1.0), **options: Any) -> Settings:
    return Settings(manifest, RequestOptions.of(options), retention)


@pytest.mark.parametrize(
    ("manifest", "size", "tiles"),
    [
        (INTERNVL, (64, 64), [5, 1]),
        (INTERNVL, (96, 32), [4, 3, 1]),
        (DEEPSEEK, (16, 32), [3, 2]),
        (DEEPSEEK, (32, 16), [2]),
    ],
)
def test_tiles_of_a_picture_fall_to_the_fewest(manifest: Any, size: tuple[int, int], tiles: list[int]) -> None:
    rows = settings(manifest).of(size, 7)
    assert [row[0].tiles for row in rows] == tiles
    assert all([one.tiles for one in row] == [row[0].tiles] * len(row) for row in rows)


def test_work_is_that_of_the_request() -> None:
    (row, *_) = settings(retention=(0.5, 0.6)).of((64, 64), 7)
    assert [one.retention for one in row] == [0.6, 0.55, 0.5]
    for one in row:
        counted = count_request(INTERNVL, tokens=27, visual_tokens=20, retention=one.retention).prefill.total
        assert one.gflops == counted / 1e9
    assert row[0].gflops > row[-1].gflops


def test_the_most_tiles_are_those_of_the_options() -> None:
    assert [row[0].max_tiles for row in settings(max_tiles=3).of((96, 32), 0)] == [3, 2, 1]
    assert [row[0].max_tiles for row in settings(max_tiles=1).of((96, 32), 0)] == [1]
    assert settings().greatest((64, 64)).tiles == 5 and settings().greatest((64, 64)).retention == 1


def test_the_unmodified_model_has_one_retention() -> None:
    rows = settings(method="none").of((64, 64), 7)
    assert [[one.retention for one in row] for row in rows] == [[1.0], [1.0]]


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ((0.15, 0.3), [0.3, 0.25, 0.2, 0.15]),
        ((0.12, 0.2), [0.2, 0.15, 0.12]),
        ((0.5, 0.5), [0.5]),
        ((0.48, 0.5), [0.5, 0.48]),
    ],
)
def test_retentions_fall_to_the_least(given: tuple[float, float], found: list[float]) -> None:
    assert retentions_between(*given) == found


@pytest.mark.parametrize("given", [0, 1.5, (0.5, 0.2), (0.1, 0.2, 0.3), "0.5", None, (0.2, "1"), [], (0.0, 1.0)])
def test_what_is_no_range(given: Any) -> None:
    with pytest.raises(InvalidRequest, match="retention"):
        read_range(given)
    assert read_range(0.5) == (0.5, 0.5) and read_range([0.25, 1]) == (0.25, 1.0)


def test_too_few_tiles_are_refused() -> None:
    from msgspec.structs import replace

    manifest = replace(INTERNVL, processor=replace(INTERNVL.processor, min_tiles=2))
    with pytest.raises(InvalidRequest, match=r"^max_tiles 1: expected at least 2 local tile\(s\) per picture$"):
        settings(manifest, max_tiles=1)
    assert settings(manifest).of((64, 64), 0)[-1][0].max_tiles >= 2
