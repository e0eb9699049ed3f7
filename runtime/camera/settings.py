# SPDX-License-Identifier: Apache-2.0
"""What can be chosen for one frame, retention and tiles, and how much work each choice is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from fastmmoe.runtime.bundle.manifest import Manifest
from fastmmoe.runtime.cost.flops import count_request
from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.method.policy import UNMODIFIED
from fastmmoe.runtime.method.schedule import check_retention
from fastmmoe.runtime.request.family import family_of
from fastmmoe.runtime.request.options import RequestOptions

RETENTIONS = (0.15, 1.0)
"""The least and the greatest that are chosen, where nobody says otherwise."""
STEP = 0.05
"""Between two retentions."""


@dataclass(frozen=True)
class Setting:
    """One choice for one frame.

    Attributes:
        max_tiles: the request's.
        tiles: what the vision graph gets then, global view or thumbnail among them.
        gflops: counted for the prefill (docs/flops.md).
    """

    retention: float
    max_tiles: int
    tiles: int
    gflops: float


class Settings:
    """The settings of every size of picture, from a bundle's manifest.

    Args:
        retention: one number, or the least and the greatest.
        options: of the requests; method, visual_top_k and max_tiles (the most) count.
    Raises:
        InvalidRequest: retention or max_tiles is not within its range.
    """

    def __init__(
        self, manifest: Manifest, options: RequestOptions, retention: float | Sequence[float] = RETENTIONS
    ) -> None:
        self._manifest, self._options = manifest, options
        self._family, config = family_of(manifest.processor), manifest.processor
        is_unmodified = (options.method or manifest.policy.default_method) == UNMODIFIED
        self._retentions = [1.0] if is_unmodified else retentions_between(*read_range(retention))
        least, most = self._family.least_tiles(config), self._family.picture_tiles(config)
        given = most if options.max_tiles is None else options.max_tiles
        if given < least:
            raise InvalidRequest(f"max_tiles {given}: expected at least {least} local tile(s) per picture")
        self._limits = range(least, max(min(given, most), least) + 1)
        self._known: dict[tuple[tuple[int, int], int], list[list[Setting]]] = {}

    def of(self, size: tuple[int, int], text_tokens: int) -> list[list[Setting]]:
        """By tiles, the most first, the settings from the greatest retention to the least.

        Args:
            size: (width, height) of the picture.
            text_tokens: of the prompt.
        Raises:
            InvalidRequest: a picture that cannot be cut.
        """
        key = (size, text_tokens)
        if key not in self._known:
            # Cameras have one size; a source of many must not fill the memory.
            self._known = {key: [self._of_tiles(*cut, text_tokens) for cut in self._cuts(size)]}
        return self._known[key]

    def greatest(self, size: tuple[int, int]) -> Setting:
        """The most tiles at the greatest retention, of a picture of this size; its FLOPs are those without text."""
        return self.of(size, 0)[0][0]

    def _cuts(self, size: tuple[int, int]) -> list[tuple[int, int, int]]:
        """(max_tiles, tiles, visual tokens), one for each number of tiles, the most first."""
        found = {}
        for limit in self._limits:
            cut = self._family.cut(self._manifest.processor, [size], limit, 0)
            found[cut.tile_counts[0]] = (limit, cut.tile_counts[0], cut.visual_counts[0])
        return [found[tiles] for tiles in sorted(found, reverse=True)]

    def _of_tiles(self, max_tiles: int, tiles: int, visual_tokens: int, text_tokens: int) -> list[Setting]:
        return [
            Setting(retention, max_tiles, tiles, self._flops(visual_tokens, text_tokens, retention) / 1e9)
            for retention in self._retentions
        ]

    def _flops(self, visual_tokens: int, text_tokens: int, retention: float) -> int:
        return count_request(
            self._manifest,
            tokens=visual_tokens + text_tokens,
            visual_tokens=visual_tokens,
            method=self._options.method,
            retention=retention,
            visual_top_k=self._options.visual_top_k,
        ).prefill.total


def read_range(retention: Any) -> tuple[float, float]:
    """The least and the greatest retention of one number or two. Raises InvalidRequest where they are not that."""
    ends = tuple(retention) if isinstance(retention, (tuple, list)) else (retention, retention)
    if len(ends) != 2 or not all(isinstance(end, Real) for end in ends) or ends[0] > ends[1]:
        raise InvalidRequest(
            f"retention {retention!r:.60}: expected a number in (0, 1], or two of them, the least and the greatest"
        )
    return check_retention(ends[0]), check_retention(ends[1])


def retentions_between(least: float, greatest: float) -> list[float]:
    """From the greatest to the least, STEP apart."""
    count = int((greatest - least) / STEP + 1e-9)
    found = [round(greatest - STEP * n, 6) for n in range(count + 1)]
    return found if found[-1] <= least + 1e-9 else [*found, least]
