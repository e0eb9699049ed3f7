# SPDX-License-Identifier: Apache-2.0
"""The measurement of writing: one row a run and the medians, and nothing left behind."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.scripts import script

benchmark = script("benchmark_writing")


def test_a_row_for_each_run(
    checkpoint: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(checkpoint("dsvl2-mha")), "--graph", "embedding", "--runs", "2", "--at", str(tmp_path)]
    assert benchmark.main(arguments) == 0
    line, _, head, rule, *rows = capsys.readouterr().out.splitlines()
    assert re.match(r"0\.00 GB, [\d,]+ MB/s, \d+ MB of memory at most; ", line)
    assert [row.split(" | ")[0] for row in rows] == ["| 1", "| 2", "| median"]
    assert len({row.count("|") for row in (head, rule, *rows)}) == 1
    assert not list(tmp_path.iterdir())
