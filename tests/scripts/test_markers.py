# SPDX-License-Identifier: Apache-2.0
"""Parts of documents between markers, and generated files that are out of date."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.support.scripts import script

markers = script("markers")
DOCUMENT = "# Title\n\n<!-- one -->\n\nold\n\n<!-- end of one -->\nrest\n<!-- two -->\n<!-- end of two -->\n"


def test_a_part_takes_the_place_of_the_old_one() -> None:
    once = markers.replace_part(DOCUMENT, "one", "new")
    assert once == DOCUMENT.replace("old", "new")
    assert markers.replace_part(once, "one", "new") == once
    assert "<!-- two -->\n\nmore\n\n<!-- end of two -->" in markers.replace_part(DOCUMENT, "two", "more")


@pytest.mark.parametrize("document", ["", "<!-- one -->", "<!-- end of one -->", "<!-- end of one --><!-- one -->"])
def test_a_document_without_markers(document: str, tmp_path: Path) -> None:
    """The file is named, and stays as it is."""
    file = tmp_path / "page.md"
    file.write_text(document)
    message = f"^{file}: no <!-- one --> ... <!-- end of one -->: put the two lines where the tables belong$"
    with pytest.raises(markers.MissingMarkers, match=message):
        markers.write_part(file, "one", "new")
    assert file.read_text() == document


def test_a_part_of_a_file_is_written(tmp_path: Path) -> None:
    file = tmp_path / "page.md"
    file.write_text(DOCUMENT, encoding="utf-8")
    markers.write_part(file, "one", "größer")
    assert file.read_text(encoding="utf-8") == DOCUMENT.replace("old", "größer")


def test_generated_files_are_written_or_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/make_something.py"])
    files = {tmp_path / "a": "1\n", tmp_path / "folder" / "b": "2\n"}
    with pytest.raises(SystemExit) as out_of_date:
        markers.write_or_check(files, check=True)
    assert out_of_date.value.code == f"{tmp_path / 'a'} is out of date: run python scripts/make_something.py"
    assert not list(tmp_path.iterdir())
    markers.write_or_check(files, check=False)
    markers.write_or_check(files, check=True)
    (tmp_path / "folder" / "b").write_text("3\n")
    with pytest.raises(SystemExit) as out_of_date:
        markers.write_or_check(files, check=True)
    assert str(out_of_date.value.code).startswith(f"{tmp_path / 'folder' / 'b'} is out of date")
    assert (tmp_path / "folder" / "b").read_text() == "3\n"


def test_tables() -> None:
    assert markers.table(("a", "b"), [("1", "x|y")]) == "| a | b |\n| --- | --- |\n| 1 | x\\|y |"
    assert markers.table(("a", "b"), [], numbers_from=1) == "| a | b |\n| --- | ---: |"
