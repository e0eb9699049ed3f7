# SPDX-License-Identifier: Apache-2.0
"""What every command has: --json that is documented, exit codes, help that is quick and narrow, completion, pages."""

from __future__ import annotations

import argparse
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fastmmoe.runtime.cli import command as command_module
from fastmmoe.runtime.cli import main as main_module
from fastmmoe.runtime.cli.main import build_parser, main
from tests.support.documented import COMMANDS, README, pages, rows, section, undocumented

LATE = {"numpy", "PIL", "onnxruntime", "tokenizers", "torch", "transformers", "onnx", "onnx_ir", "onnxscript"}
"""Modules that take most of the time of a command that needs them."""
ESCAPE = "\x1b["
FINDS_PROBLEMS = {"doctor": {0, 1}}
"""Exit codes without an error of the user's, of commands that need no argument."""


def parsers() -> dict[str, argparse.ArgumentParser]:
    (commands,) = (a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    return dict(commands.choices)


NAMES = sorted(parsers())
every_command = pytest.mark.parametrize("name", NAMES)


def required(parser: argparse.ArgumentParser, place: str) -> Iterator[str]:
    """The fewest arguments that the parser takes; what is text or a path is the place."""
    alternatives = {id(a) for group in parser._mutually_exclusive_groups for a in group._group_actions[1:]}
    one_of = [group._group_actions[0] for group in parser._mutually_exclusive_groups if group.required]
    for action in parser._actions:
        if action.option_strings:
            if (action.required and id(action) not in alternatives) or action in one_of:
                yield from (action.option_strings[-1], place if action.type is None else "0.5")
        elif action.nargs != "?":
            yield place


def exit_code(*arguments: str) -> int:
    try:
        return main(arguments)
    except SystemExit as end:
        return int(str(end.code))


def shown(*arguments: str, columns: int = 80, **environment: str) -> tuple[str, set[str]]:
    """What the command prints, and the first names of the modules that it imports."""
    program = str(Path(sys.executable).with_name("fastmmoe"))
    result = subprocess.run(
        [sys.executable, "-X", "importtime", program, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"COLUMNS": str(columns)} | environment,
    )
    lines = result.stderr.splitlines()
    assert result.returncode == 0 and all(line.startswith("import time:") for line in lines)
    return result.stdout, {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}


def is_unbreakable(line: str) -> bool:
    """An option with its values, which stay together, or one word."""
    return len(re.sub(r"\[[^]]*\]\]?|\([^)]*\)|-[\w-]+ [^ ]+", "x", line.strip()).split()) == 1


@every_command
def test_help_is_quick_and_as_wide_as_the_terminal(name: str) -> None:
    (wide, modules), (narrow, _) = (shown(name, "--help", columns=columns) for columns in (80, 40))
    assert wide.startswith(f"usage: fastmmoe {name} ")
    assert "argparse" in modules and not modules & LATE
    assert [line for line in wide.splitlines() if len(line) > 80] == []
    assert [line for line in narrow.splitlines() if len(line) > 40 and not is_unbreakable(line)] == []


def test_all_help_is_there_for_who_wants_no_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal, where Python 3.14 colours help."""
    monkeypatch.setenv("NO_COLOR", "1")
    child, terminal = pty.fork()
    if child == 0:
        os.execv(sys.executable, [sys.executable, str(Path(sys.executable).with_name("fastmmoe")), "--help"])
    found = b""
    while piece := _read(terminal):
        found += piece
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    text = found.decode()
    assert all(f"    {name} " in text for name in NAMES) and ESCAPE not in text


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # the other end was closed
        return b""


@every_command
def test_json_is_an_option_and_written_down(name: str) -> None:
    assert "--json" in parsers()[name]._option_string_actions
    assert len(rows(COMMANDS, name)) == 1
    text = section(name)
    assert "json" in text.lower() and text.count("`") > 4


@every_command
def test_a_row_of_the_readme_leads_to_its_page(name: str) -> None:
    assert rows(README, name)
    assert any(f"fastmmoe {name}" in page.read_text(encoding="utf-8") for page in pages(README, name))


@every_command
def test_what_the_user_can_mend_is_one_line_and_exit_code_2(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    given = list(required(parsers()[name], str(tmp_path / "nowhere")))
    assert exit_code(name, *given, "--josn") == 2
    assert "unrecognized arguments: --josn; did you mean --json?" in capsys.readouterr().err
    assert exit_code(name, *given, "--json") in FINDS_PROBLEMS.get(name, {2})
    output = capsys.readouterr()
    if name in FINDS_PROBLEMS:
        assert json.loads(output.out) and output.err == ""
    else:
        assert output.out == "" and len(output.err.splitlines()) == 1, output
        assert output.err.startswith("fastmmoe: error: ")
    assert list(tmp_path.iterdir()) == []


@every_command
def test_an_interrupt_is_exit_code_130(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(arguments: argparse.Namespace) -> int:
        assert arguments.command == name and callable(arguments.function)
        raise KeyboardInterrupt

    monkeypatch.setattr(main_module, "_call", interrupted)
    assert exit_code(name, *required(parsers()[name], str(tmp_path))) == 130
    assert capsys.readouterr().err == "fastmmoe: interrupted; nothing was written\n"


def test_completion_knows_every_command_and_option(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    assert exit_code("--print-completion", "bash") == 0
    script = capsys.readouterr().out
    for name, parser in parsers().items():
        prefix = f"_shtab_fastmmoe_{name.replace('-', '_')}"
        (options,) = re.findall(rf"^{prefix}_option_strings=\((.*)\)$", script, flags=re.M)
        assert {option.strip("'") for option in options.split()} == set(parser._option_string_actions)


@pytest.mark.parametrize(
    "arguments",
    [
        ("export", "demo", "OUT"),
        ("calibrate", "demo", "--out", "OUT"),
        ("report", "nowhere", "--out", "OUT"),
        ("golden", "nowhere", "OUT"),
        ("triton", "nowhere", "OUT"),
    ],
    ids=" ".join,
)
def test_no_folder_is_made_above_a_directory(
    arguments: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "mistyped" / "out")
    assert exit_code(*(out if one == "OUT" else one for one in arguments)) == 2
    assert f"{out}: {tmp_path / 'mistyped'} is not a directory: make it first" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_is_close_to_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    for name in NAMES:
        word = name[:-2] + name[:-3:-1]
        assert exit_code(word) == 2
        assert f"did you mean {name}?" in capsys.readouterr().err


JSON: dict[str, tuple[str, ...]] = {
    "inspect": ("BUNDLE",),
    "flops": ("BUNDLE", "--visual-tokens", "64", "--text-tokens", "9", "--tiles", "1"),
    "plan-retention": ("BUNDLE", "--visual-tokens", "64", "--text-tokens", "9", "--flops-reduction", "20%"),
    "doctor": ("--quick",),
    "plan": ("demo",),
}
"""Commands that end at once, and their arguments; the keys of the others are compared where they run."""


@pytest.mark.parametrize("name", JSON)
def test_keys_are_those_of_the_page(name: str, toy_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(toy_bundle) if one == "BUNDLE" else one for one in JSON[name]]
    exit_code(name, *arguments, "--json")
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert undocumented(name, found) == []
    for one in found.get("requests", [])[:1]:
        assert undocumented(name, one) == []


def test_a_key_that_the_page_lacks_is_found() -> None:
    assert undocumented("doctor", ["worst", "best"]) == ["best"]
    assert command_module.USER_ERROR == 2
