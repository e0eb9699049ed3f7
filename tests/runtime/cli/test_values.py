# SPDX-License-Identifier: Apache-2.0
"""Shares in per cent, and pictures from standard input."""

from __future__ import annotations

import argparse
import io
import math
import sys
from types import SimpleNamespace

import pytest

from fastmmoe.runtime.cli.values import read_pictures, share, shares
from fastmmoe.runtime.errors import InvalidRequest


@pytest.mark.parametrize(
    ("text", "value"),
    [("0.5", 0.5), ("50%", 0.5), ("55.3%", 0.553), ("0%", 0.0), ("1e1%", 0.1), ("250%", 2.5), ("1.5", 1.5)],
)
def test_shares(text: str, value: float) -> None:
    """Their range is not for this to say."""
    assert share(text) == value


def test_what_is_no_number_stays_none() -> None:
    assert math.isnan(share("nan%")) and share("inf%") == math.inf


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("half", "'half': expected a share such as 0.5, or 50%"),
        ("%", "'%': expected a share"),
        ("", "'': expected a share"),
        ("50", "'50': expected a share such as 0.5, or 50%; did you mean 50%?"),
        ("5.5", "did you mean 5.5%?"),
    ],
)
def test_what_is_refused(text: str, words: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError) as refusal:
        share(text)
    assert words in str(refusal.value)


def test_several_shares() -> None:
    assert shares("1, 50%,0.25") == (1.0, 0.5, 0.25)
    with pytest.raises(argparse.ArgumentTypeError, match="'': expected"):
        shares("1,")


def standard_input(data: bytes, *, is_terminal: bool = False) -> SimpleNamespace:
    return SimpleNamespace(buffer=io.BytesIO(data), isatty=lambda: is_terminal)


def test_a_picture_from_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", standard_input(b"picture"))
    assert read_pictures(["a.png", "-", "https://example.com/b.jpg"]) == [
        "a.png",
        b"picture",
        "https://example.com/b.jpg",
    ]


def test_standard_input_that_holds_no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", standard_input(b"", is_terminal=True))
    with pytest.raises(InvalidRequest, match="standard input, which is a terminal: add < picture"):
        read_pictures(["-"])
    monkeypatch.setattr(sys, "stdin", standard_input(b"picture"))
    with pytest.raises(InvalidRequest, match="--image - twice"):
        read_pictures(["-", "-"])
