# SPDX-License-Identifier: Apache-2.0
"""The command: exit codes, options, and that neither torch nor a weight is needed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from fastmmoe.runtime.cli.command import SIGNALS
from fastmmoe.runtime.cli.main import main

NO_TORCH = """
import sys
sys.modules |= dict.fromkeys(("torch", "onnx", "onnx_ir", "onnxscript", "safetensors", "onnxruntime"))
from fastmmoe.runtime.cli.main import main
sys.exit(main(["plan", "deepseek-vl2-tiny", "--target", "orin-nx-16gb"]))
"""


@pytest.fixture(autouse=True)
def _keep_signal_handlers() -> Iterator[None]:
    """The command takes over signals for good, as a process of its own may."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def plan(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["plan", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = plan(capsys, "deepseek-vl2-tiny", "--target", "jetson-orin-nx")
    assert code == 0 and out.rstrip().splitlines()[-1].startswith("fits, ")
    code, out, _ = plan(capsys, "deepseek-vl2-small", "--target", "jetson-orin-nx", "--memory", "16GB")
    assert code == 1 and "does not fit, " in out
    code, out, _ = plan(capsys, "deepseek-vl2-small", "--target", "jetson-orin-nx", "--experts", "int4")
    assert code == 0 and "experts int4" in out
    code, out, error = plan(capsys, "deepseek-vl2-small", "--zero-points")
    assert (code, out) == (2, "")
    assert error == "fastmmoe: error: --zero-points: needs --experts int8 or int4, or --dense int4\n"
    code, out, error = plan(capsys, "deepseek-vl2-small", "--group-size", "64", "--dense", "int8", "--target", "cpu")
    assert (code, out) == (2, "")
    assert error == "fastmmoe: error: --group-size 64: needs --experts int8, int4 or fp8, or --dense int4\n"
    code, out, error = plan(capsys, "deepseek-vl2-small", "--experts", "int4", "--layout", "tiles", "--target", "h100")
    assert (code, out) == (2, "")
    assert error == "fastmmoe: error: --layout tiles: target h100 has no kernels that read them\n"
    code, _, error = plan(capsys, "no-such-model")
    assert code == 2 and "no such directory" in error and error.count("\n") == 1
    assert "names that need none: deepseek-vl2-tiny, " in error and "did you mean" not in error
    _, _, error = plan(capsys, "deepseek-ai/deepseek-vl2-smal")
    assert error.endswith("; did you mean deepseek-vl2-small?\n")


def test_json_has_what_was_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--target", "h100", "-r", "0.9,0.1", "--tiles", "3", "--text-tokens", "7", "--new-tokens", "11")
    code, out, _ = plan(capsys, "deepseek-vl2", *arguments, "--dtype", "bf16", "--reserve", "3", "--json")
    found = json.loads(out)
    assert code == 0 and (found["model"], found["dtype"], found["machine"]) == ("deepseek-vl2", "bf16", "H100 SXM")
    assert [request["retention"] for request in found["requests"]] == [0.9, 0.1]
    limits = found["limits"]
    assert limits["max_tiles"] == 3 and limits["max_tokens"] == limits["max_visual"] + 7
    assert limits["max_cache"] == limits["max_tokens"] + 11
    assert found["memory"]["reserve"] == 3 * 10**9


def test_a_typo_of_a_machine_is_understood(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["plan", "demo", "--target", "orin-nx-16"])
    assert ended.value.code == 2
    assert "did you mean orin-nx-16gb?" in capsys.readouterr().err


def test_a_base_installation_plans() -> None:
    result = subprocess.run([sys.executable, "-c", NO_TORCH], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "fits, " in result.stdout
