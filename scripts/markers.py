# SPDX-License-Identifier: Apache-2.0
"""Generated parts of documents, each between the lines `<!-- NAME -->` and `<!-- end of NAME -->`."""

from __future__ import annotations

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
