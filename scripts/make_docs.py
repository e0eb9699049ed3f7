# SPDX-License-Identifier: Apache-2.0
"""Write the operators' contract tables into docs/operators.md.

    python scripts/make_docs.py [--check] [FILE]

Only what stands between the markers `<!-- contract NAME -->` and `<!-- end of contract NAME -->` is written. With
--check nothing is, and the exit code is 1 where a table is out of date.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from fastmmoe.exporter.ops import DOMAIN, OPS, Attribute, OpSpec, Tensor

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "operators.md"


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [head, ("---",) * len(head), *(tuple(cell.replace("|", "\\|") for cell in row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def tensor_row(tensor: Tensor) -> tuple[str, ...]:
    """Name, shape, type and meaning of an input or output."""
    condition = f" Only with `{tensor.only_if[0]}` = {tensor.only_if[1]}." if tensor.only_if else ""
    return f"`{tensor.name}`", f"[{', '.join(tensor.shape)}]", ", ".join(tensor.types), tensor.doc + condition


def legal_values(attribute: Attribute) -> str:
    """The values an attribute may have, in words."""
    if not attribute.choices:
        return "any"
    if attribute.kind == "string":
        return ", ".join(f"`{choice}`" for choice in attribute.choices)
    low, high = attribute.choices
    return f"{low} to {high}"


def contract(spec: OpSpec) -> str:
    """The contract of one operator in Markdown."""
    variables = "; ".join(f"{name} is one of {', '.join(types)}" for name, types in spec.type_variables.items())
    columns = ("name", "shape", "type", "meaning")
    attributes = ((f"`{a.name}`", a.kind, legal_values(a), a.doc) for a in spec.attributes)
    parts = [
        spec.doc,
        f"Domain `{DOMAIN}`, version {spec.version}. Types: {variables}.",
        "Inputs, in order:",
        table(columns, map(tensor_row, spec.inputs)),
        "Outputs:",
        table(columns, map(tensor_row, spec.outputs)),
        "Attributes, all required:",
        table(("name", "kind", "legal values", "meaning"), attributes),
    ]
    return "\n\n".join(parts)


def update(text: str) -> str:
    """The document with the present contracts; exits where a marker is missing."""
    for spec in OPS:
        begin, end = f"<!-- contract {spec.name} -->", f"<!-- end of contract {spec.name} -->"
        before, found_begin, rest = text.partition(begin)
        _, found_end, after = rest.partition(end)
        if not (found_begin and found_end):
            sys.exit(f"no {begin} ... {end} in the document: put the two lines where the contract belongs")
        text = f"{before}{begin}\n\n{contract(spec)}\n\n{end}{after}"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the operators' contract tables.")
    parser.add_argument("file", nargs="?", type=Path, default=DOCUMENT, metavar="FILE")
    parser.add_argument("--check", action="store_true", help="only say whether the tables are up to date")
    arguments = parser.parse_args()
    text = arguments.file.read_text(encoding="utf-8")
    updated = update(text)
    if not arguments.check:
        arguments.file.write_text(updated, encoding="utf-8")
    elif updated != text:
        sys.exit(f"{arguments.file} is out of date: run python scripts/make_docs.py")


if __name__ == "__main__":
    main()
