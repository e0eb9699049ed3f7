# SPDX-License-Identifier: Apache-2.0
"""What the documentation says of a command."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
COMMANDS = ROOT / "docs" / "commands.md"
_LINK = re.compile(r"\]\(([\w/.-]*)(?:#([\w-]+))?\)")


def rows(page: Path, command: str) -> list[str]:
    """Lines of a page's tables whose first cell names a command of fastmmoe."""
    lines = page.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if re.match(rf"\|[^|]*`fastmmoe {command}(?: [^`]*)?`", line)]


def pages(page: Path, command: str) -> list[Path]:
    """Pages of docs that the command's rows lead to."""
    found = [link for row in rows(page, command) for link, _ in _LINK.findall(row)]
    return [path for link in found if (path := page.parent / link).is_file() and path.suffix == ".md"]


def section(command: str) -> str:
    """What the pages that docs/commands.md leads to say of the command's JSON."""
    (row,) = rows(COMMANDS, command)
    ((name, anchor),) = _LINK.findall(row.split("|")[2])
    text = (COMMANDS.parent / name if name else COMMANDS).read_text(encoding="utf-8")
    if not anchor:
        return text
    parts = re.split(r"^(?=## )", text, flags=re.M)
    return next(part for part in parts if _anchor(part.splitlines()[0]) == anchor)


def undocumented(command: str, keys: Iterable[str]) -> list[str]:
    """Those of its JSON's keys that the section does not name."""
    text = section(command)
    return [key for key in keys if f"`{key}`" not in text]


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading.lstrip("# ").lower()).replace(" ", "-")
