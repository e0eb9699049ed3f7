# SPDX-License-Identifier: Apache-2.0
"""The printed script completes subcommands, options, choices and files, as the shell itself says."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from fastmmoe.runtime.cli import command
from fastmmoe.runtime.cli.completion import SHELLS
from fastmmoe.runtime.cli.main import main

# Asks bash for the completions of a line's last word, as a press of the tab key does.
ASK = """
source completion
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}; COMP_TYPE=9
$(complete -p fastmmoe | sed -E 's/.*-F ([^ ]+) .*/\\1/') fastmmoe "${@: -1}" "${@: -2:1}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


def script(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    pytest.importorskip("shtab")
    with pytest.raises(SystemExit) as ended:
        main(["--print-completion", shell])
    assert not ended.value.code
    return capsys.readouterr().out


@pytest.mark.parametrize("shell", SHELLS)
def test_every_command_is_in_the_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = script(shell, capsys)
    for name in (
        "run",
        "verify",
        "doctor",
        "bench",
        "plan",
        "plan-retention",
        "export",
        "max-new-tokens",
        "prune-layers",
    ):
        assert name in text


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("plan-",), {"plan-retention"}),
        (("doctor", "--q"), {"--quick"}),
        (("plan", "--target", "orin-nx"), {"orin-nx-8gb", "orin-nx-16gb"}),
        (("run", "--max"), {"--max-new-tokens", "--max-tiles"}),
        (("export", "--target", "jetson-t"), {"jetson-thor", "jetson-thor@jp7.2"}),
        (("run", "some"), {"some-bundle"}),
        (("run", "--image", "pic"), {"picture.png"}),
    ],
    ids=lambda words: "-".join(sorted(words)),
)
def test_bash_completes(
    words: tuple[str, ...], expected: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("needs bash")
    (tmp_path / "some-bundle").mkdir()
    (tmp_path / "picture.png").touch()
    (tmp_path / "completion").write_text(script("bash", capsys), "utf-8")
    asked = subprocess.run(
        [bash, "-c", ASK, "bash", "fastmmoe", *words], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert {line.strip() for line in asked.stdout.splitlines()} >= expected, asked.stderr


def test_without_shtab(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    find = command.importlib.util.find_spec
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None if name == "shtab" else find(name))
    assert main(["--print-completion", "bash"]) == 2
    assert capsys.readouterr().err == (
        "fastmmoe: error: --print-completion needs shtab: pip install 'fastmmoe[completion]'\n"
    )
