# SPDX-License-Identifier: Apache-2.0
"""What scripts/check_processors.py reads from a run, and the settings it runs under."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.scripts import script

processors = script("check_processors")
REPORT = """<testsuites><testsuite name="pytest" errors="1" failures="1" skipped="1" tests="5"><testcase><properties>
<property name="rounding of logits" value="0.12"/><property name="rounding of cache" value="0.30"/>
<property name="rounding of cache" value="0.02"/><property name="other" value="9"/>
</properties></testcase></testsuite></testsuites>"""


def test_a_row_of_the_table(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(REPORT)
    row = processors.read_report(report, "A=1", 2, 3.4)
    assert processors.table([row]).splitlines()[-1] == "| A=1 | 2 | 2 | 2 | 1 | 3 | 0.30 (cache) |"


def test_a_setting_replaces_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    assert "ATEN_CPU_CAPABILITY" not in processors.environment_of(processors.OWN, 1)
    environment = processors.environment_of("MKL_CBWR=COMPATIBLE", 2)
    assert "ATEN_CPU_CAPABILITY" not in environment
    assert (environment["MKL_CBWR"], environment["OMP_NUM_THREADS"]) == ("COMPATIBLE", "2")


def test_no_setting_that_differs_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processors, "probe", lambda setting: "same")
    with pytest.raises(SystemExit, match="no setting changes a result"):
        processors.other_setting()
    monkeypatch.setattr(processors, "probe", lambda setting: setting)
    assert processors.other_setting() == processors.SETTINGS[1]
