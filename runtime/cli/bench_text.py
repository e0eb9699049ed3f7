# SPDX-License-Identifier: Apache-2.0
"""A measurement as a Markdown table with a heading, as CSV, and as JSON whole or line by line."""

from __future__ import annotations

import csv
import io
import json
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from fastmmoe.runtime.bench.comparison import Comparison
from fastmmoe.runtime.bench.result import Result, Row, row_name, stored
from fastmmoe.runtime.cli.table import align

WIDTH = 80
MARKDOWN, CSV, JSON, JSON_LINES = "md", "csv", "json", "jsonl"
OF_MACHINE = ("device", "provider", "power_mode", "threads", "commit")
OF_BUNDLE = ("model", "target", "dtype", "experts", "sha256")
"""What each line of CSV has of them, as each line of llama-bench has its build and model."""


def write(result: Result, form: str) -> Iterator[str]:
    """The lines of a form: one of MARKDOWN, CSV, JSON and JSON_LINES."""
    forms: dict[str, Callable[[Result], Iterator[str]]] = {
        MARKDOWN: markdown,
        CSV: comma_separated,
        JSON: lambda found: iter([json.dumps(msgspec.to_builtins(found))]),
        JSON_LINES: json_lines,
    }
    yield from forms[form](result)


def markdown(result: Result) -> Iterator[str]:
    """A heading of what was measured, and a table."""
    for paragraph in heading(result):
        yield from textwrap.wrap(
            paragraph, WIDTH, break_long_words=False, break_on_hyphens=False, subsequent_indent="  "
        )
    yield ""
    yield from table(_cells(result.rows), left=1)


def heading(result: Result) -> Iterator[str]:
    """What ran, where and how."""
    bundle, machine, settings = result.bundle, result.machine, result.settings
    versions = dict(machine.get("versions", {}))
    commit = f" ({machine['commit']})" if machine.get("commit") else ""
    engines = f", {bundle['engines']}" if bundle.get("engines") else ""
    formats = ", ".join(f"{name} {one}" for name, one in stored(result).items())
    yield (
        f"{bundle['model']} for {bundle['target']}, {bundle['dtype']}, {formats}{engines}, "
        f"bundle {bundle['sha256'][:12]}"
    )
    own = versions.pop("fastmmoe", "?")
    others = [f"{name} {number}" for name, number in versions.items() if name != "numpy"]
    yield ", ".join([f"fastmmoe {own}{commit}", *others])
    threads = f"{machine['threads']} of {machine['cores']} cores" if machine.get("threads") else ""
    parts = [machine["device"], machine["provider"], threads, machine.get("power_mode"), machine.get("clocks")]
    yield f"{', '.join(filter(None, parts))}, load {machine['load']:g}"
    if result.rates is not None:
        rates = result.rates
        yield f"roofline: {rates['flops'] / 1e12:.3g} TFLOPS, {rates['bytes'] / 1e9:.4g} GB/s ({rates['source']})"
    yield (
        f"prompt: {settings['text_tokens']:,} text, {settings['visual_tokens']:,} visual tokens, "
        f"{settings['tiles']} tiles; answer: {settings['new_tokens']}; {settings['repetitions']} runs, "
        f"{settings['warmup']} warm-up"
    )


def _cells(rows: Sequence[Row]) -> list[list[str]]:
    has_energy, has_bound = (any(getattr(row, name) is not None for row in rows) for name in ("joules", "roofline_ms"))
    head = ["ms", "mean", "sd", "median", "p90", "tok/s"]
    lines = [head + ["roof"] * has_bound + ["J"] * has_energy]
    for row in rows:
        times = [figure(value) for value in (row.mean_ms, row.sd_ms, row.median_ms, row.p90_ms)]
        line = [row_name(row), *times, "" if row.tokens_per_s is None else figure(row.tokens_per_s)]
        line += [_share(row.roofline_share)] * has_bound
        line += ["" if row.joules is None else figure(row.joules)] * has_energy
        lines.append(line)
    return lines


def figure(value: float) -> str:
    """Three digits, and all of those before the point; of what is smaller than 0.1 ms thousandths."""
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2 if value >= 0.1 else 3}f}"


def _share(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}" if share >= 0.1 else f"{share:.1%}"


def table(lines: Sequence[Sequence[str]], left: int) -> Iterator[str]:
    """Rows of cells as a table of Markdown whose columns are aligned; the first row is the head.

    Args:
        left: so many first columns are aligned to the left, the others, numbers, to the right.
    """
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for number, line in enumerate(lines):
        cells = [
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        yield f"| {' | '.join(cells)} |"
        if number == 0:
            rules = ["-" * (width + 2) if i < left else "-" * (width + 1) + ":" for i, width in enumerate(widths)]
            yield f"|{'|'.join(rules)}|"


def comma_separated(result: Result) -> Iterator[str]:
    """A line a row, samples left out; the first names the columns."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    fields = [name for name in Row.__struct_fields__ if name != "samples_ms"]
    writer.writerow([*OF_BUNDLE, *OF_MACHINE, *fields])
    for row in result.rows:
        start = [result.bundle.get(name) for name in OF_BUNDLE] + [result.machine.get(name) for name in OF_MACHINE]
        values = [getattr(row, name) for name in fields]
        writer.writerow(start + [";".join(map(str, v)) if isinstance(v, tuple) else v for v in values])
    yield from buffer.getvalue().splitlines()


def json_lines(result: Result) -> Iterator[str]:
    """An object a row, each with all that is known of machine, bundle and settings."""
    whole: dict[str, Any] = msgspec.to_builtins(result)
    rows = whole.pop("rows")
    for row in rows:
        yield json.dumps(whole | row)


def compared(found: Comparison) -> Iterator[str]:
    """A comparison in lines, what else differs before the table."""
    yield f"A {found.files[0]}"
    yield f"B {found.files[1]}"
    for line in found.differences:
        yield from textwrap.wrap(line, WIDTH, subsequent_indent="  ")
    yield ""
    lines = [["median ms", "A", "B", "B/A", f"{found.confidence:.0%} interval", ""]]
    for row in found.rows:
        bounds = "" if row.low is None or row.high is None else f"{row.low:.3f}-{row.high:.3f}"
        lines.append([row_name(row), *map(figure, row.median_ms), f"{row.ratio:.3f}", bounds, row.verdict])
    yield from align(lines, left=1)
    yield from found.only
