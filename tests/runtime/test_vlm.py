# SPDX-License-Identifier: Apache-2.0
"""Arguments of the Python API and texts of the command line that are not what they should be: one line each."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmmoe.runtime.cli.main import main
from fastmmoe.runtime.conversation import Conversation
from fastmmoe.runtime.errors import BundleMismatch, InvalidRequest
from fastmmoe.runtime.vlm import VLM


@pytest.mark.parametrize("bundle", [123, None, b"demo", ["demo"], True])
def test_what_is_no_directory_of_a_bundle(bundle: Any) -> None:
    with pytest.raises(InvalidRequest, match=f"^bundle is of type {type(bundle).__name__}: expected a str or Path"):
        VLM(bundle)


@pytest.mark.parametrize("name", ["portable", "verify"])
@pytest.mark.parametrize("value", ["yes", "no", "", 0, 1, None, 0.0])
def test_what_is_neither_true_nor_false(name: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=f"^{name} is of type {type(value).__name__}: expected True or False$"):
        VLM(tmp_path, **{name: value})


def test_truth_values_of_numpy_count_as_pythons(tmp_path: Path) -> None:
    with pytest.raises(BundleMismatch):
        VLM(tmp_path, portable=np.False_, verify=np.True_)  # type: ignore[arg-type]


def test_a_conversation_is_one_with_a_loaded_bundle() -> None:
    vlm: Any = "demo-cpu"
    with pytest.raises(InvalidRequest, match=r"^vlm is of type str: expected a loaded bundle, VLM.directory.$"):
        Conversation(vlm)
    vlm, system = object.__new__(VLM), ["Be brief."]
    with pytest.raises(InvalidRequest, match=r"^system is of type list: expected a string, or None$"):
        Conversation(vlm, system=system)  # type: ignore[arg-type]


@pytest.mark.parametrize("conversations", [np.array([]), np.array(3), b"a", "a", {}, 3, None])
def test_what_is_no_list_of_conversations(conversations: Any) -> None:
    expected = f"^conversations is of type {type(conversations).__name__}: expected a list of messages"
    with pytest.raises(InvalidRequest, match=expected):
        object.__new__(VLM).generate_batch(conversations)


@pytest.mark.parametrize("conversations", [[], (), iter([])])
def test_no_conversations(conversations: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"^no conversations: expected at least one$"):
        object.__new__(VLM).generate_batch(conversations)


@pytest.mark.parametrize("option", ["--prompt", "--system"])
def test_bytes_that_are_no_text(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As Python gives the bytes of a command line that its locale's encoding does not take."""
    assert main(["run", "no-bundle", "--prompt", "a", option, "caf\udce9"]) == 2
    error = f"{option} 'caf\\udce9': is not valid UTF-8 in this locale; give UTF-8"
    assert capsys.readouterr().err == f"fastmmoe: error: {error}\n"


@pytest.mark.parametrize(("locale", "text"), [("ascii", b"caf\xc3\xa9"), ("utf-8", b"caf\xe9")])
def test_a_prompt_that_the_locale_does_not_take(locale: str, text: bytes) -> None:
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": str(int(locale == "utf-8"))}
    command: list[str | bytes] = [
        sys.executable,
        "-m",
        "fastmmoe.runtime.cli.main",
        "run",
        "no-bundle",
        "--prompt",
        text,
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert f": is not valid {locale.upper()} in this locale; " in done.stderr
    assert ("LC_ALL=C.UTF-8" in done.stderr) == (locale == "ascii")
