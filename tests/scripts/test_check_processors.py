# SPDX-License-Identifier: Apache-2.0
"""What scripts/check_processors.py reads from a run, and the settings it runs under."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
REPORT = """<testsuites><testsuite name="pytest" errors="1" failures="1" skipped="1" tests="5"><testcase><properties>
<property name="rounding of logits" value="0.12"/><property name="rounding of cache" value="0.30"/>
<property name="rounding of cache" value="0.02"/><property name="other" value="9"/>
</properties></testcase></testsuite></testsuites>"""


@pytest.fixture(scope="module")
def script() -> Any:
    sys.path.append(str(SCRIPTS))
    spec = importlib.util.spec_from_file_location("check_processors", SCRIPTS / "check_processors.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_a_row_of_the_table(script: Any, tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(REPORT)
    row = script.read_report(report, "A=1", 2, 3.4)
    assert script.table([row]).splitlines()[-1] == "| A=1 | 2 | 2 | 2 | 1 | 3 | 0.30 (cache) |"


def test_a_setting_replaces_others(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    assert "ATEN_CPU_CAPABILITY" not in script.environment_of(script.OWN, 1)
    environment = script.environment_of("MKL_CBWR=COMPATIBLE", 2)
    assert "ATEN_CPU_CAPABILITY" not in environment
    assert (environment["MKL_CBWR"], environment["OMP_NUM_THREADS"]) == ("COMPATIBLE", "2")


def test_no_setting_that_differs_is_an_error(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "probe", lambda setting: "same")
    with pytest.raises(SystemExit, match="no setting changes a result"):
        script.other_setting()
    monkeypatch.setattr(script, "probe", lambda setting: setting)
    assert script.other_setting() == script.SETTINGS[1]
