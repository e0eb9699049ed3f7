# SPDX-License-Identifier: Apache-2.0
"""Write the tables that docs share with the code: a graph's inputs (bundle.md) and the settings (methods.md).

    python scripts/make_tables.py [--check] [--docs FOLDER]

Only what stands between markers is written; the tables are runtime/bundle/graph_io.py and runtime/method/policy.py.
With --check nothing is, and the exit code is 1 where a document is out of date.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from markers import replace_part, table, write_or_check

from fastmmoe.runtime.bundle import graph_io
from fastmmoe.runtime.bundle.graph_io import Entry
from fastmmoe.runtime.method.policy import SETTINGS, Setting
from fastmmoe.runtime.ranges import limits

DOCUMENTS = Path(__file__).resolve().parents[1] / "docs"


def entry_row(entry: Entry) -> tuple[str, ...]:
    """Name, type with shape, and meaning of an input or output."""
    sizes = ", ".join("A + 1" if size == graph_io.OFFSETS else str(size) for size in entry.shape)
    condition = f" Only {entry.only_if.text}." if entry.only_if.text else ""
    return f"`{entry.name}`", f"{entry.dtype} [{sizes}]", f"{entry.doc}{condition}"


def graph_tables() -> str:
    """Those of the language model."""
    inputs = (*graph_io.OF_CALL, *graph_io.OF_SITE, *graph_io.OF_LAYER, *graph_io.OF_GROUP)
    kinds = {"input": inputs, "output": (*graph_io.OUTPUTS, *graph_io.SITE_OUTPUTS)}
    parts = (table((kind, "type, shape", "meaning"), map(entry_row, entries)) for kind, entries in kinds.items())
    return "\n\n".join(parts)


def settings_table() -> str:
    """The settings of a policy that a user gives by name."""
    return table(("setting", "what", "values", "default", "in policy.json"), map(setting_row, SETTINGS.values()))


def setting_row(setting: Setting) -> tuple[str, ...]:
    """Name, meaning, legal values and default of a setting."""
    values = ", ".join(f"`{choice}`" for choice in setting.choices)
    if not values:
        low, is_open, high = limits(setting.kind)
        values = f"above {low}, up to {high}" if is_open else f"{low} to {high}"
    default = "by [family](#default-settings)" if setting.default is None else f"`{setting.default}`"
    return f"`{setting.name}`", setting.what, values, default, "yes" if setting.in_file else "no"


PARTS = {"bundle.md": ("graph_io", graph_tables), "methods.md": ("settings", settings_table)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only say whether the documents are up to date")
    parser.add_argument("--docs", type=Path, default=DOCUMENTS, metavar="FOLDER")
    arguments = parser.parse_args()
    files = {}
    for name, (marker, write) in PARTS.items():
        path = arguments.docs / name
        files[path] = replace_part(path.read_text(encoding="utf-8"), marker, write())
    write_or_check(files, check=arguments.check)


if __name__ == "__main__":
    main()
