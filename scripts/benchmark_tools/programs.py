# SPDX-License-Identifier: Apache-2.0
"""Workers in environments of their own, each a process that answers a line with a line of JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmark_tools.errors import BenchmarkError


class Program:
    """A worker of this folder; its first answer says that it is ready.

    Args:
        python: of its environment, to which the caller's PYTHONPATH means nothing unless it is this one.
    Raises:
        BenchmarkError: it ends.
    """

    def __init__(self, python: str, worker: str, *arguments: str) -> None:
        self._name = " ".join((worker, *arguments))
        command = [python, str(Path(__file__).parent / worker), *arguments]
        environment = dict(os.environ)
        if python != sys.executable:
            environment.pop("PYTHONPATH", None)
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)
        self._read()

    def ask(self, *words: object) -> dict[str, Any]:
        """The answer to a line of words."""
        assert self._process.stdin is not None
        # That it has ended is told by reading.
        with suppress(BrokenPipeError):
            print(*words, file=self._process.stdin, flush=True)
        return self._read()

    def times(self, size: int, count: int) -> tuple[list[float], float]:
        """Of a worker of llm_worker.py: seconds of so many calls of `size` rows, and their processor time."""
        found = self.ask(size, count)
        return found["seconds"], found["cpu_seconds"]

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise BenchmarkError(f"{self._name} ended; its message is above")
        found: dict[str, Any] = json.loads(line)
        return found
