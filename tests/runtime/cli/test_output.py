# SPDX-License-Identifier: Apache-2.0
"""Where lines and JSON go; lines of progress are in tests/exporter/test_progress.py."""

from __future__ import annotations

import argparse
import io
import json
import sys
from pathlib import Path

import pytest

from fastmmoe.runtime.cli.output import Lines, add_output, print_json


def lines_of(*options: str) -> Lines:
    parser = argparse.ArgumentParser()
    add_output(parser)
    return Lines.of(parser.parse_args(options))


@pytest.mark.parametrize(
    ("options", "out", "err"),
    [((), "a\nb\n", ""), (("--json",), "", "a\nb\n"), (("-q",), "", ""), (("--quiet", "--json"), "", "")],
)
def test_lines_leave_stdout_to_the_object(
    options: tuple[str, ...], out: str, err: str, capsys: pytest.CaptureFixture[str]
) -> None:
    say = lines_of(*options)
    say("a")
    say.progress("b")
    output = capsys.readouterr()
    assert (output.out, output.err) == (out, err)


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii"])
def test_json_of_any_encoding(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="backslashreplace")
    monkeypatch.setattr(sys, "stdout", stream)
    print_json({"text": "é 你", "place": Path("a")})
    found = stream.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
    assert json.loads(found) == {"text": "é 你", "place": "a"} and found.count("\n") == 1
    assert ("\\u" in found) == (encoding != "utf-8")
