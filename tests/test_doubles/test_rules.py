# SPDX-License-Identifier: Apache-2.0
"""The rules of the double in its documentation: all, and no others."""

from __future__ import annotations

import re
from pathlib import Path

from tests.support.double import DOUBLES

PAGE = Path(__file__).resolve().parents[2] / "docs" / "device-double.md"


def test_documentation_names_every_rule() -> None:
    sources = "\n".join(path.read_text(encoding="utf-8") for path in DOUBLES.rglob("*.py"))
    raised = set(re.findall(r'Misuse\(\s*"([a-z-]+)"', sources)) | set(re.findall(r'rule = "([a-z-]+)" if', sources))
    raised |= set(re.findall(r'rule = "[a-z-]+" if .* else "([a-z-]+)"', sources))
    table = PAGE.read_text(encoding="utf-8").partition("| rule |")[2].partition("\n\n")[0]
    named = {rule for row in table.splitlines() for rule in re.findall(r"`([a-z-]+)`", row.split("|")[1])}
    assert named == raised
