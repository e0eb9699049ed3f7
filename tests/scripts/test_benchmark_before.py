# SPDX-License-Identifier: Apache-2.0
"""The benchmark of commits: turns, the table's cells, and a worker with another runtime."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from tests.support.scripts import SCRIPTS, script

before, programs = script("benchmark_before"), script("benchmark_tools.programs")


def answer(**times: float) -> dict[str, float]:
    return {"vision": 100.0, "prefill": 50.0, "first token": 160.0, "decode": 4.0, "anonymous": 2e9} | {
        name.replace("_", " "): value for name, value in times.items()
    }


def test_programs_take_turns_and_the_first_answer_does_not_count() -> None:
    asked: list[tuple[str, float]] = []

    class Program:
        def __init__(self, name: str) -> None:
            self._name = name

        def ask(self, retention: float, new_tokens: int) -> dict[str, float]:
            asked.append((self._name, retention))
            return answer(decode=len(asked))

    programs = {name: Program(name) for name in ("new", "old")}
    found = before.measure(programs, [1.0, 0.5], repeats=2, new_tokens=3, patience=0.0)
    assert asked[:2] == [("new", 1.0), ("old", 1.0)]
    assert [name for name, _ in asked[2:]] == ["old", "old", "new", "new", "new", "new", "old", "old"]
    assert [one["decode"] for one in found["old", 0.5]] == [4, 10] and len(found) == 4


def test_rows_are_medians_beside_the_baseline() -> None:
    found = {
        ("new", 0.5): [answer(first_token=10), answer(first_token=40), answer(first_token=20, decode=2.0)],
        ("old", 0.5): [answer(decode=16.0)],
    }
    assert before.rows(found, "old") == [
        ("new", "0.5", "100", "50", "20", "4.0", "2.00", "8.0", "4.0"),
        ("old", "0.5", "100", "50", "160", "16.0", "2.00", "", ""),
    ]
    assert before.rows(found, "")[0][-2:] == ("", "")


STUB = """
from types import SimpleNamespace


class VLM:
    def __init__(self, bundle, threads):
        print("loading", bundle, threads)

    def generate(self, messages, retention, max_new_tokens):
        picture = messages[0]["content"][0]["image"]
        steps = list(range(1, max_new_tokens))
        stats = SimpleNamespace(vision_ms=len(picture), prefill_ms=retention, ttft_ms=3.0, decode_ms=steps)
        return SimpleNamespace(stats=stats)
"""


def test_a_worker_answers_with_what_the_runtime_says(tmp_path: Path) -> None:
    """Of a runtime that prints what is no answer."""
    python = tmp_path / "bin" / "python"
    venv.create(tmp_path, with_pip=False)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(tmp_path)}))
    (packages / "fastmmoe").mkdir()
    (packages / "fastmmoe" / "__init__.py").write_text(STUB)
    program = programs.Program(str(python), "request_worker.py", "bundle", "a.png", "1")
    found = program.ask(0.5, 4)
    program.close()
    assert found.pop("anonymous") > 1e6
    assert found == {"vision": 5, "prefill": 0.5, "first token": 3.0, "decode": 2}


def test_bundles_of_one_name_are_refused() -> None:
    command = [sys.executable, str(SCRIPTS / "benchmark_before.py"), "a/int4", "--baseline", "python", "b/int4"]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 2 and "bundles named int4, int4: expected names that differ" in ran.stderr
