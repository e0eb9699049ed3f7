# SPDX-License-Identifier: Apache-2.0
"""What fastmmoe bench writes and other commands read: docs/bench.md has every key."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, TypeAlias

import msgspec
from msgspec import Meta

from fastmmoe.runtime.bench.statistics import median
from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.strict_json import parse_strictly

SCHEMA = "fastmmoe-bench/1"
LARGEST_RESULT = 1 << 26
WRITE_ONE = "write one with fastmmoe bench OUT -o json > FILE"
Test: TypeAlias = Literal["vision", "prefill", "decode", "first_token", "request"]
Count: TypeAlias = Annotated[int, Meta(ge=1)]
Milliseconds: TypeAlias = Annotated[float, Meta(gt=0)]
Samples: TypeAlias = Annotated[tuple[Milliseconds, ...], Meta(min_length=1, max_length=1 << 20)]


class Kind(Protocol):
    """A setting, or a row of one."""

    @property
    def retention(self) -> float | None: ...
    @property
    def depth(self) -> int | None: ...
    @property
    def batch(self) -> int: ...
    @property
    def concurrency(self) -> int: ...


class Measured(Kind, Protocol):
    """A row of a result, or of a comparison."""

    @property
    def test(self) -> str: ...
    @property
    def tokens(self) -> int: ...


def setting_name(kind: Kind) -> str:
    """What makes it different: " d1024 r0.5 b4", of a batch of four or (c4) four requests at once."""
    words = [] if kind.depth is None else [f"d{kind.depth}"]
    words += [] if kind.retention is None else [f"r{kind.retention:g}"]
    words += [f"b{kind.batch}"] if kind.batch > 1 else []
    words += [f"c{kind.concurrency}"] if kind.concurrency > 1 else []
    return f" {' '.join(words)}" if words else ""


def row_name(row: Measured) -> str:
    """ "decode d241 r0.5"; the tokens of a prompt where they are what is computed."""
    tokens = f" {row.tokens // row.batch}" if row.test in ("prefill", "request") else ""
    return f"{row.test.replace('_', ' ')}{tokens}{setting_name(row)}"


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the requests of one setting. Times are milliseconds.

    Attributes:
        test: vision and prefill are one call each, decode is a step, first_token and request all up to there.
        retention: None for vision, which does not depend on it.
        depth: decode: tokens of the prompt, pruned ones included, that the steps come after; first_token and request:
            those of the prompt where they were asked for; else None.
        batch: sequences of one packed call, whose times these are.
        concurrency: requests at once, each of which is a sample.
        tokens: those that tokens_per_s counts: vision's visual ones, the prompt's, those of a step, those of an answer,
            of all sequences of a batch.
        kept_visual_tokens: after each stage of the method.
        samples_ms: one a request; decode: the mean of its steps.
        tokens_per_s: tokens over the median; requests at once together. None for first_token.
        requests_per_s: request: answers a second, all sequences together; else None.
        roofline_ms, roofline_share: the least time by `runtime/cost/roofline.py`, and what part of the median it is.
        joules: request: of one answer; None where nothing measures it.
    """

    test: Test
    retention: Annotated[float, Meta(gt=0, le=1)] | None
    depth: Count | None
    batch: Count
    concurrency: Count
    tokens: Count
    visual_tokens: int
    kept_visual_tokens: tuple[int, ...]
    samples_ms: Samples
    mean_ms: float
    sd_ms: float
    median_ms: Milliseconds
    p90_ms: float
    tokens_per_s: float | None
    requests_per_s: float | None = None
    roofline_ms: float | None = None
    roofline_share: float | None = None
    joules: float | None = None

    @property
    def key(self) -> tuple[Any, ...]:
        """Rows of two results with the same one are about the same."""
        return self.test, self.retention, self.depth, self.batch, self.concurrency, self.tokens


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """A whole measurement.

    Attributes:
        machine: what ran it: device, power mode, clocks, threads, versions, commit.
        bundle: which one; `sha256` is its identity.
        settings: how it was measured.
        rates: operations and bytes a second of the rooflines, and their source; None where they are not known.
        notes: what a reader should know, one line each.
    """

    schema: str
    machine: dict[str, Any]
    bundle: dict[str, Any]
    settings: dict[str, Any]
    rates: dict[str, Any] | None
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()


def read_result(path: Path) -> Result:
    """A result that `-o json` wrote.

    Raises:
        InvalidRequest: there is no such file, or it is something else.
    """
    try:
        if not path.is_file():
            raise InvalidRequest(f"{path}: {'no file' if path.exists() else 'no such file'}; {WRITE_ONE}")
        if path.stat().st_size > LARGEST_RESULT:
            raise InvalidRequest(f"{path}: {path.stat().st_size} bytes, expected at most {LARGEST_RESULT}; {WRITE_ONE}")
        data = path.read_bytes()
        document = parse_strictly(data)
    except OSError as error:
        raise InvalidRequest(f"{path}: {error.strerror or error}; {WRITE_ONE}") from error
    except ValueError as error:
        if isinstance(error, InvalidRequest):
            raise
        raise InvalidRequest(f"{path}: {error}; {WRITE_ONE}") from error
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema != SCHEMA:
        found = "no schema" if schema is None else f"schema {schema!r:.60}"
        raise InvalidRequest(f"{path}: {found}, expected {SCHEMA!r}: {WRITE_ONE}")
    try:
        result = msgspec.json.decode(data, type=Result)
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"{path}: damaged: {error}; {WRITE_ONE}") from error
    if problem := _problem(result):
        raise InvalidRequest(f"{path}: damaged: {problem}; {WRITE_ONE}")
    return result


def _problem(result: Result) -> str:
    """What was edited or lost, of all that is read; "" where nothing was."""
    if not isinstance(result.bundle.get("sha256"), str):
        return "bundle has no sha256"
    for name, values in (("machine.versions", result.machine.get("versions")), ("bundle.linears", linears(result))):
        if not isinstance(values or {}, dict):
            return f"{name} is no object"
    keys = set()
    for row in result.rows:
        if not math.isclose(row.median_ms, median(row.samples_ms), rel_tol=1e-6):
            return f"row {row_name(row)!r} has median_ms {row.median_ms:g}, its samples {median(row.samples_ms):g}"
        if row.key in keys:
            return f"row {row_name(row)!r} is given twice"
        keys.add(row.key)
    return ""


def linears(result: Result) -> Any:
    """Formats of the bundle's linear layers by what they are part of; of older results None."""
    return result.bundle.get("linears")


def stored(result: Result) -> dict[str, str]:
    """Formats of the bundle's weights by what they are of: experts, and linear layers that are no floats."""
    packed = {name: str(kind) for name, kind in (linears(result) or {}).items() if kind != "float"}
    return {"experts": str(result.bundle.get("experts", "float"))} | packed
