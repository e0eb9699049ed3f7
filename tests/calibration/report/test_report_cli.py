# SPDX-License-Identifier: Apache-2.0
"""The command's own part: where it writes, what it hands on, and its exit codes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fastmmoe.calibration.report import build
from fastmmoe.calibration.report.results import Report
from fastmmoe.runtime.cli.main import main


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """Options of the reports that were asked for."""
    monkeypatch.chdir(tmp_path)
    return []


def reporting(report: Report, given: list[Any]) -> Any:
    def build_report(bundle: Path, options: Any, say: Any) -> Report:
        given.append(options)
        return report

    return build_report


def test_a_report_goes_beside(given: list[Any], good_report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the bundle's name, whatever the path to it is."""
    monkeypatch.setattr(build, "build_report", reporting(good_report, given))
    Path("bundles/mine").mkdir(parents=True)
    assert main(["report", "bundles/mine/", "--bench", "a.json", "b.json"]) == 0
    assert main(["report", "bundles/mine", "--out", "there"]) == 0
    monkeypatch.chdir("bundles/mine")
    assert main(["report", "../mine/../../bundles"]) == main(["report", "."]) == 0
    assert [(options.out, options.bench) for options in given] == [
        (Path("mine-report"), (Path("a.json"), Path("b.json"))),
        (Path("there"), ()),
        (Path("bundles-report"), ()),
        (Path("mine-report"), ()),
    ]


def test_claims_that_do_not_hold_fail_a_check(
    given: list[Any], good_report: Report, bad_report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    for report, expected in ((good_report, 0), (bad_report, 1)):
        monkeypatch.setattr(build, "build_report", reporting(report, given))
        assert main(["report", "nowhere"]) == 0
        assert main(["report", "nowhere", "--check"]) == expected
