# SPDX-License-Identifier: Apache-2.0
"""The first moments of a process: interrupts, missing streams, and how little is imported."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

SECONDS = 30


STARTS = {"fastmmoe": "fastmmoe.runtime.cli.start", "fastmmoe-export": "fastmmoe.exporter.start"}


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("name", STARTS)
def test_an_interrupt_of_the_first_moments(name: str, number: str) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    program = f"""
import os, signal, sys
from {STARTS[name]} import main
class Finder:
    def find_spec(self, module, *_):
        if module == "argparse":
            os.kill(os.getpid(), signal.{number})
sys.modules.pop("argparse", None)
sys.meta_path.insert(0, Finder())
main()"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False, timeout=SECONDS)
    assert (result.returncode, result.stderr) == (130, f"{name}: interrupted; nothing was written\n".encode())


@pytest.mark.parametrize("name", STARTS)
def test_a_start_runs_the_command(name: str) -> None:
    program = f"import sys; sys.argv[1:] = ['--version']\nfrom {STARTS[name]} import main\n"
    program += "assert not {'argparse', 'msgspec', 'numpy'} & sys.modules.keys()\nsys.exit(main())"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False, timeout=SECONDS)
    assert result.returncode == 0 and result.stdout.startswith(b"fastmmoe "), result.stderr
