# SPDX-License-Identifier: Apache-2.0
"""Options of fastmmoe calibrate: what is refused, and that nothing heavy is loaded before."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fastmmoe.calibration.options import CalibrationOptions
from fastmmoe.runtime.cli.main import main
from fastmmoe.runtime.errors import InvalidRequest


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trials": 0}, "--trials 0: expected 1 or more"),
        ({"search_questions": 0}, "--search-questions 0: expected 1 or more"),
        ({"questions": 0}, "--questions 0: expected 1 or more"),
        ({"threads": 0}, "--threads 0: expected 1 or more"),
        ({"jobs": -1}, "--jobs -1: expected 0 or more"),
        ({"jobs": 999_999}, "--jobs 999999: expected at most"),
        ({"threads": 999_999}, "--threads 999999: expected at most"),
        ({"flops_reduction": 1.0}, "--flops-reduction 1.0: expected a number between 0 and 1"),
        ({"min_quality": float("nan")}, "--min-quality nan: expected a number between 0 and 1"),
        ({"max_ttft_ms": 0.0}, "--max-ttft-ms 0.0: expected a positive number"),
        ({"flops_reduction": 0.5, "min_quality": 0.9}, "--flops-reduction and --min-quality: expected one goal"),
        ({"max_ttft_ms": 20.0, "target": "jetson-orin"}, "--max-ttft-ms with --target jetson-orin: times are measured"),
        ({"scheduler": "tcp://localhost:1"}, "--scheduler: backend loky runs on this machine"),
        ({"backend": "dask"}, "--backend dask: give the cluster's address with --scheduler"),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        CalibrationOptions(**options).validate()
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


def test_goal_and_directory() -> None:
    CalibrationOptions().validate()
    assert CalibrationOptions().goal == ("flops_reduction", 0.55)
    assert CalibrationOptions(min_quality=0.9).goal == ("min_quality", 0.9)
    assert CalibrationOptions(model="a/b").directory == Path("b-calibration")
    assert CalibrationOptions(jobs=3).worker_count == 3


def test_command_names_the_extra(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "optuna" else find_spec(name))
    assert main(["calibrate", "demo"]) == 2
    assert capsys.readouterr().err == ("fastmmoe: error: calibration needs optuna: pip install 'fastmmoe[calibrate]'\n")


def test_bad_arguments_load_nothing_heavy() -> None:
    code = (
        "import sys; from fastmmoe.runtime.cli.main import main; "
        "code = main(['calibrate', 'demo', '--min-quality', '1.5']); "
        "print(sorted({'torch', 'optuna', 'joblib', 'onnx'} & sys.modules.keys())); sys.exit(code)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (2, "[]\n")
    assert result.stderr == "fastmmoe: error: --min-quality 1.5: expected a number between 0 and 1\n"
