# SPDX-License-Identifier: Apache-2.0
"""What an error says is one line, and each kind is one of Python's own, too."""

from __future__ import annotations

import pytest

from fastmmoe.runtime import errors
from fastmmoe.runtime.errors import FastmmoeError, without_breaks


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ü 你 [✓]", "plain ü 你 [✓]"),
        ("a\nb\r\tc", "a\\nb\\r\\tc"),
        ("\x1b[2J\x00\x7f\x9f", "\\x1b[2J\\x00\\x7f\\x9f"),
        ("\u2028\u2029", "\\u2028\\u2029"),
        ("\\n", "\\n"),
        (" ~\xa0", " ~\xa0"),
    ],
)
def test_characters_that_move_the_cursor_are_shown(text: str, shown: str) -> None:
    assert without_breaks(text) == shown
    assert str(FastmmoeError(text)) == shown


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("InvalidRequest", ValueError),
        ("UnsupportedModel", Exception),
        ("BundleMismatch", Exception),
        ("NotFinite", ArithmeticError),
        ("RunFailed", Exception),
        ("BackendMissing", ImportError),
    ],
)
def test_kinds(name: str, base: type[Exception]) -> None:
    kind: type[FastmmoeError] = getattr(errors, name)
    with pytest.raises(base) as caught:
        raise kind("no\nsuch")
    assert isinstance(caught.value, FastmmoeError) and str(caught.value) == "no\\nsuch"
