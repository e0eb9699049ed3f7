# SPDX-License-Identifier: Apache-2.0
"""The pages of the documentation: links, paths and names in them are those of the tree, and the index has them all."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
INDEX = ROOT / "docs" / "README.md"
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "exporter").rglob("*.md")),
]
# `folder/file.py`, or `folder/file.py:name` of what the file defines; what is built is not in the tree.
PATH = re.compile(r"`((?:runtime|exporter|calibration|plugins|scripts|tests|docs)/(?!lib/)[\w./-]+)(?::(\w+))?`")


def links_of(page: Path) -> list[str]:
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    return [link for link in links if not link.startswith("http")]


def leads_somewhere(page: Path, link: str) -> bool:
    """The file is there, and has the heading that the link names."""
    name, _, anchor = link.partition("#")
    path = page.parent / name if name else page
    if not anchor or not path.is_file():
        return path.exists() and not anchor
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), flags=re.M)
    return anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def is_there(path: str, name: str) -> bool:
    """The file is there, and defines the name if there is one."""
    file = ROOT / path
    if not name or not file.is_file():
        return file.exists() and not name
    defined = rf"^ *(?:def|class) {name}\b|^ *{name}(?:: [^=]+)? = " if file.suffix == ".py" else rf"\b{name}\b"
    return re.search(defined, file.read_text(encoding="utf-8"), flags=re.M) is not None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_paths_exist(page: Path) -> None:
    assert not [link for link in links_of(page) if not leads_somewhere(page, link)]
    named = PATH.findall(page.read_text(encoding="utf-8").replace("plugins/lib/", "lib/"))
    assert not [(path, name) for path, name in named if not is_there(path, name)]


def test_what_is_not_there_is_found() -> None:
    readme = ROOT / "README.md"
    assert leads_somewhere(readme, "docs/report.md#the-demo-model")
    assert not leads_somewhere(readme, "docs/report.md#the-model-of-another-page")
    assert not leads_somewhere(readme, "docs/of-another-repository.md")
    assert is_there("runtime/vlm.py", "VLM")
    assert not is_there("runtime/vlm.py", "CLM")
    assert not is_there("runtime/clm.py", "")


def test_the_index_has_every_page() -> None:
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {INDEX.name}
    assert pages <= set(links_of(INDEX))
