# SPDX-License-Identifier: Apache-2.0
"""Write the table of the language model's inputs and outputs in docs/bundle.md from runtime/bundle/graph_io.py.

    python scripts/make_graph_io.py [--check] [--docs FILE]

With --check nothing is written, and the exit code is 1 where the document is out of date.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from markers import replace_part

from fastmmoe.runtime.bundle import graph_io
from fastmmoe.runtime.bundle.graph_io import Entry

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "bundle.md"
MARKER = "graph_io"


def row(entry: Entry) -> str:
    """Name, type with shape, and meaning of an input or output."""
    sizes = ", ".join("B + 1" if size == graph_io.OFFSETS else str(size) for size in entry.shape)
    condition = f" Only {entry.only_if.text}." if entry.only_if.text else ""
    return f"| `{entry.name}` | {entry.dtype} [{sizes}] | {entry.doc}{condition} |"


def table(kind: str, entries: Iterable[Entry]) -> str:
    """A Markdown table of inputs or outputs."""
    return "\n".join([f"| {kind} | type, shape | |", "| --- | --- | --- |", *map(row, entries)])


def tables() -> str:
    """Those of the language model."""
    inputs = (*graph_io.OF_CALL, *graph_io.OF_SITE, *graph_io.OF_LAYER, *graph_io.OF_GROUP)
    return f"{table('input', inputs)}\n\n{table('output', (*graph_io.OUTPUTS, *graph_io.SITE_OUTPUTS))}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only say whether the document is up to date")
    parser.add_argument("--docs", type=Path, default=DOCUMENT, metavar="FILE")
    arguments = parser.parse_args()
    document = arguments.docs.read_text(encoding="utf-8")
    updated = replace_part(document, MARKER, tables())
    if not arguments.check:
        arguments.docs.write_text(updated, encoding="utf-8")
    elif updated != document:
        sys.exit(f"{arguments.docs} is out of date: run python scripts/make_graph_io.py")


if __name__ == "__main__":
    main()
