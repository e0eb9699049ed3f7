# SPDX-License-Identifier: Apache-2.0
"""docs/operators.md and the tables of the native libraries agree with the contracts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fastmmoe.exporter.ops import OPS

REPOSITORY = Path(__file__).resolve().parents[3]
DOCUMENT = REPOSITORY / "docs" / "operators.md"
TABLES = REPOSITORY / "plugins" / "contract"


def make_contract(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, REPOSITORY / "scripts" / "make_contract.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_tables_are_up_to_date() -> None:
    result = make_contract("--check")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("spec", OPS, ids=lambda spec: spec.name)
def test_everything_in_the_contract_is_in_the_document(spec: object) -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    for part in (*spec.inputs, *spec.outputs, *spec.attributes):  # type: ignore[attr-defined]
        assert f"| `{part.name}` |" in text


def test_a_changed_table_is_found_and_written_again(tmp_path: Path) -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    stale = tmp_path / "operators.md"
    stale.write_text(text.replace("| `window` | int | 1 to 64 |", "| `window` | int | 1 to 63 |"), encoding="utf-8")
    result = make_contract("--check", "--docs", stale)
    assert result.returncode == 1
    assert result.stderr == f"{stale} is out of date: run python scripts/make_contract.py\n"
    tables = {option: tmp_path / option for option in ("--header", "--source")}
    outputs = [part for pair in tables.items() for part in pair]
    assert make_contract("--docs", stale, *outputs).returncode == 0
    assert stale.read_text(encoding="utf-8") == text
    written = {path.read_text(encoding="utf-8") for path in tables.values()}
    assert written == {(TABLES / name).read_text(encoding="utf-8") for name in ("tables.h", "tables.cpp")}


def test_a_missing_marker_is_an_error(tmp_path: Path) -> None:
    document = tmp_path / "operators.md"
    document.write_text("# Operators\n", encoding="utf-8")
    result = make_contract("--docs", document)
    assert result.returncode == 1
    assert "no <!-- contract FmmSparseMoE -->" in result.stderr
    assert document.read_text(encoding="utf-8") == "# Operators\n"


@pytest.mark.parametrize("option", ["--header", "--source"])
def test_a_changed_table_of_the_native_libraries_is_found(tmp_path: Path, option: str) -> None:
    stale = tmp_path / "tables"
    stale.write_text("", encoding="utf-8")
    result = make_contract("--check", option, stale)
    assert result.returncode == 1
    assert result.stderr == f"{stale} is out of date: run python scripts/make_contract.py\n"
