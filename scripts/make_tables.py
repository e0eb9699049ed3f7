# SPDX-License-Identifier: Apache-2.0
"""Write the tables that docs share with the code: a graph's inputs (bundle.md) and the settings (methods.md).

    python scripts/make_tables.py [--check] [--docs FOLDER]

Only what stands between markers is written; the tables are runtime/bundle/graph_io.py and runtime/method/policy.py.
With --check nothing is, and the exit code is 1 where a document is out of date.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from markers import replace_part

from fastmmoe.runtime.bundle import graph_io
from fastmmoe.runtime.bundle.graph_io import Entry
from fastmmoe.runtime.method.policy import SETTINGS, Setting
from fastmmoe.runtime.ranges import limits

DOCUMENTS = Path(__file__).resolve().parents[1] / "docs"


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


def settings_table() -> str:
    """The settings of a policy that a user gives by name."""
    head = ["| setting | what | values | default | in policy.json |", "| --- | --- | --- | --- | --- |"]
    return "\n".join(head + [settings_row(setting) for setting in SETTINGS.values()])


def settings_row(setting: Setting) -> str:
    """Name, meaning, legal values and default of a setting."""
    values = ", ".join(f"`{choice}`" for choice in setting.choices)
    if not values:
        low, is_open, high = limits(setting.kind)
        values = f"above {low}, up to {high}" if is_open else f"{low} to {high}"
    default = "by [family](#default-settings)" if setting.default is None else f"`{setting.default}`"
    is_in_file = "yes" if setting.in_file else "no"
    return f"| `{setting.name}` | {setting.what} | {values} | {default} | {is_in_file} |"


PARTS = {"bundle.md": ("graph_io", tables), "methods.md": ("settings", settings_table)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only say whether the documents are up to date")
    parser.add_argument("--docs", type=Path, default=DOCUMENTS, metavar="FOLDER")
    arguments = parser.parse_args()
    for name, (marker, write) in PARTS.items():
        path = arguments.docs / name
        document = path.read_text(encoding="utf-8")
        updated = replace_part(document, marker, write())
        if not arguments.check:
            path.write_text(updated, encoding="utf-8")
        elif updated != document:
            sys.exit(f"{path} is out of date: run python scripts/make_tables.py")


if __name__ == "__main__":
    main()
