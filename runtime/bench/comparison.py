# SPDX-License-Identifier: Apache-2.0
"""Two measurements of one bundle, row by row: the factor between the medians, and whether it is one at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from fastmmoe.runtime.bench.result import Result, Row, read_result, row_name
from fastmmoe.runtime.bench.statistics import CONFIDENCE, ratio_interval
from fastmmoe.runtime.errors import InvalidRequest

SCHEMA = "fastmmoe-bench-compare/1"
NO_DIFFERENCE, TOO_FEW = "no difference told", "too few samples"
MACHINE = ("device", "provider", "power_mode", "threads", "commit")
SETTINGS = ("method", "prompt", "images", "max_tiles", "new_tokens", "warmup", "portable", "spinning")
"""What two measurements may differ in, and what is said of then."""
MOST_SHOWN = 60


class Compared(msgspec.Struct, frozen=True, kw_only=True):
    """A row of both.

    Attributes:
        ratio: of the second median to the first.
        low, high: bounds of it; None where the samples are too few.
    """

    test: str
    retention: float | None
    depth: int | None
    batch: int
    concurrency: int
    tokens: int
    median_ms: tuple[float, float]
    samples: tuple[int, int]
    ratio: float
    low: float | None
    high: float | None
    verdict: str


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Two measurements.

    Attributes:
        confidence: of the intervals.
        differences: what else was not the same, a line each.
        rows: those that both have.
        only: names of the rows that one has alone.
    """

    schema: str
    files: tuple[str, str]
    confidence: float
    differences: tuple[str, ...]
    rows: tuple[Compared, ...]
    only: tuple[str, ...]


def compare(first: Path, second: Path) -> Comparison:
    """The second beside the first.

    Raises:
        InvalidRequest: see `read_result`; or they are of different bundles, or have no row in common.
    """
    a, b = read_result(first), read_result(second)
    if a.bundle["sha256"] != b.bundle["sha256"]:
        raise InvalidRequest(
            f"{first} and {second} are of different bundles, {_bundle_name(a)} and {_bundle_name(b)}: compare "
            "measurements of one"
        )
    others = {row.key: row for row in b.rows}
    rows = tuple(_compared(row, others[row.key]) for row in a.rows if row.key in others)
    if not rows:
        raise InvalidRequest(
            f"{first} and {second} have no row in common: measure with the same pictures, prompt, -r, --depth, --batch "
            "and --concurrency"
        )
    known = {row.key for row in a.rows}
    only = [f"{row_name(row)}: only in {first}" for row in a.rows if row.key not in others]
    only += [f"{row_name(row)}: only in {second}" for row in b.rows if row.key not in known]
    return Comparison(
        schema=SCHEMA,
        files=(str(first), str(second)),
        confidence=CONFIDENCE,
        differences=tuple(_differences(a, b)),
        rows=rows,
        only=tuple(only),
    )


def _bundle_name(result: Result) -> str:
    bundle = result.bundle
    return f"{_shown(bundle.get('model'))} for {_shown(bundle.get('target'))} ({_shown(bundle['sha256'][:12])})"


def _compared(a: Row, b: Row) -> Compared:
    interval = ratio_interval(a.samples_ms, b.samples_ms)
    low, high = (None, None) if interval is None else interval
    ratio = b.median_ms / a.median_ms
    return Compared(
        test=a.test,
        retention=a.retention,
        depth=a.depth,
        batch=a.batch,
        concurrency=a.concurrency,
        tokens=a.tokens,
        median_ms=(a.median_ms, b.median_ms),
        samples=(len(a.samples_ms), len(b.samples_ms)),
        ratio=ratio,
        low=low,
        high=high,
        verdict=_verdict(ratio, low, high),
    )


def _verdict(ratio: float, low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return TOO_FEW
    # Where the medians lie on the other side than everything else, nothing is told either.
    if low <= 1 <= high or (ratio > 1) != (low > 1):
        return NO_DIFFERENCE
    return f"{abs(ratio - 1):.1%} {'slower' if low > 1 else 'faster'}"


def _differences(a: Result, b: Result) -> Iterator[str]:
    """What else is not the same, which may be the reason."""
    versions = [dict(one.machine.get("versions") or {}) for one in (a, b)]
    pairs = {name: (a.machine.get(name), b.machine.get(name)) for name in MACHINE}
    pairs |= {name: (versions[0].get(name), versions[1].get(name)) for name in (*versions[0], *versions[1])}
    pairs |= {name: (a.settings.get(name), b.settings.get(name)) for name in SETTINGS}
    for name, (first, second) in pairs.items():
        if first != second:
            yield f"{_shown(name).replace('_', ' ')}: A {_shown(first)}, B {_shown(second)}"


def _shown(value: Any) -> str:
    """Part of a line: what comes of a file may be meant for a terminal."""
    text = "none" if value in (None, [], ()) else " ".join(f"{value}".split())
    return (text if text.isprintable() else ascii(text))[:MOST_SHOWN]
