# SPDX-License-Identifier: Apache-2.0
"""Generated files, and parts of documents, each between the lines `<!-- NAME -->` and `<!-- end of NAME -->`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from fastmmoe.runtime.errors import FastmmoeError


class MissingMarkers(FastmmoeError):
    """A document has no place for a generated part."""


def replace_part(document: str, name: str, part: str) -> str:
    """The document with `part` between the markers of `name`.

    Raises:
        MissingMarkers: one of the two is not there.
    """
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, found_begin, rest = document.partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found_begin and found_end):
        raise MissingMarkers(f"no {begin} ... {end}: put the two lines where the tables belong")
    return f"{before}{begin}\n\n{part}\n\n{end}{after}"


def write_part(path: Path, name: str, part: str) -> None:
    """`replace_part` on a file."""
    try:
        updated = replace_part(path.read_text(encoding="utf-8"), name, part)
    except MissingMarkers as error:
        raise MissingMarkers(f"{path}: {error}") from error
    path.write_text(updated, encoding="utf-8")


def write_or_check(files: Mapping[Path, str], *, check: bool) -> None:
    """Write the files; with `check` none is, and SystemExit names the first that is out of date."""
    for path, text in files.items():
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            sys.exit(f"{path} is out of date: run python scripts/{Path(sys.argv[0]).name}")


def table(head: Iterable[str], rows: Iterable[Iterable[str]], *, numbers_from: int | None = None) -> str:
    """A Markdown table; columns from `numbers_from` on are aligned to the right."""
    titles = list(head)
    rule = ["---" if numbers_from is None or i < numbers_from else "---:" for i in range(len(titles))]
    cells = ([cell.replace("|", "\\|") for cell in row] for row in rows)
    return "\n".join(f"| {' | '.join(line)} |" for line in (titles, rule, *cells))
