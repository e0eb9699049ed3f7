# SPDX-License-Identifier: Apache-2.0
"""docs/operators.md and the tables of the native libraries agree with the contracts."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fastmmoe.exporter.ops import OPS, OpSpec

REPOSITORY = Path(__file__).resolve().parents[2]
DOCUMENT = REPOSITORY / "docs" / "operators.md"
PLUGINS = REPOSITORY / "plugins"
WRITTEN = ("contract/tables.h", "contract/tables.cpp", *(f"{spec.folder}/contract.h" for spec in OPS))


def make_contract(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, REPOSITORY / "scripts" / "make_contract.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def snake_case(name: str) -> str:
    """ScoringFunc and kScoringFunc -> scoring_func."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.removeprefix("k")).lower()


def test_tables_are_up_to_date() -> None:
    result = make_contract("--check")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("spec", OPS, ids=lambda spec: spec.name)
def test_everything_in_the_contract_is_in_the_document(spec: OpSpec) -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    for name in (*(tensor.name for tensor in (*spec.inputs, *spec.outputs)), *(a.name for a in spec.attributes)):
        assert f"| `{name}` |" in text


def test_a_changed_table_is_found_and_written_again(tmp_path: Path) -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    stale = tmp_path / "operators.md"
    stale.write_text(text.replace("| `window` | int | 1 to 64 |", "| `window` | int | 1 to 63 |"), encoding="utf-8")
    result = make_contract("--check", "--docs", stale)
    assert result.returncode == 1
    assert result.stderr == f"{stale} is out of date: run python scripts/make_contract.py\n"
    assert make_contract("--docs", stale, "--plugins", tmp_path).returncode == 0
    assert stale.read_text(encoding="utf-8") == text
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("*/*")}
    assert written == set(WRITTEN)
    for name in WRITTEN:
        assert (tmp_path / name).read_bytes() == (PLUGINS / name).read_bytes()


def test_a_missing_marker_is_an_error(tmp_path: Path) -> None:
    document = tmp_path / "operators.md"
    document.write_text("# Operators\n", encoding="utf-8")
    result = make_contract("--docs", document)
    assert result.returncode == 1
    assert "no <!-- contract FmmSparseMoE -->" in result.stderr
    assert document.read_text(encoding="utf-8") == "# Operators\n"


@pytest.mark.parametrize("name", WRITTEN)
def test_a_changed_file_of_the_native_libraries_is_found(tmp_path: Path, name: str) -> None:
    for other in WRITTEN:
        (tmp_path / other).parent.mkdir(exist_ok=True)
        shutil.copyfile(PLUGINS / other, tmp_path / other)
    stale = tmp_path / name
    stale.write_text("", encoding="utf-8")
    result = make_contract("--check", "--plugins", tmp_path)
    assert result.returncode == 1
    assert result.stderr == f"{stale} is out of date: run python scripts/make_contract.py\n"


@pytest.mark.parametrize("spec", OPS, ids=lambda spec: spec.name)
def test_enumerators_are_in_the_order_of_the_legal_values(spec: OpSpec) -> None:
    """A native library reads the place of a value among the legal ones, and takes it as the enumerator."""
    header = (PLUGINS / spec.folder / "contract.h").read_text(encoding="utf-8")
    found = re.findall(r"enum class (\w+) \{ (.*) \};", header)
    expected = [(a.name, list(a.choices)) for a in spec.attributes if a.kind == "string"]
    assert [(snake_case(kind), [snake_case(v) for v in values.split(", ")]) for kind, values in found] == expected


@pytest.mark.parametrize("spec", OPS, ids=lambda spec: spec.name)
def test_numbers_of_the_method_are_defined_once(spec: OpSpec) -> None:
    sources = [path for path in (PLUGINS / spec.folder).rglob("*") if path.is_file()]
    text = "".join(path.read_text(encoding="utf-8") for path in sources)
    for number in spec.constants:
        name = "".join(part.capitalize() for part in number.name.split("_"))
        assert re.findall(rf"\bk{name} = ([^;]*?)f?;", text) == [repr(number.value)]
