# SPDX-License-Identifier: Apache-2.0
"""The first moments of a process: interrupts, missing streams, and how little is imported."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from fastmmoe.runtime.cli.start import INTERRUPTED, SIGNALS

SECONDS = 30


STARTS = {"fastmmoe": "fastmmoe.runtime.cli.start", "fastmmoe-export": "fastmmoe.exporter.start"}
COMMANDS = {"fastmmoe": "fastmmoe.runtime.cli.main", "fastmmoe-export": "fastmmoe.exporter.cli"}


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


@pytest.mark.parametrize("name", STARTS)
def test_an_end_searches_for_no_cycles(name: str) -> None:
    program = f"import gc, sys; sys.argv[1:] = []\nimport {COMMANDS[name]} as command\ncommand.main = lambda: 7\n"
    program += f"from {STARTS[name]} import main\nprint(main(), gc.get_freeze_count() > 1000)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False, timeout=SECONDS)
    assert (result.stdout, result.stderr) == (b"7 True\n", b"")


def started(body: str, *, shell: str = 'exec "$@"') -> subprocess.CompletedProcess[bytes]:
    """A process that a shell starts like this, with the functions of the first moments."""
    program = f"import os, signal, sys\nfrom fastmmoe.runtime.cli.start import *\n{body}"
    command = ["sh", "-c", shell, "sh", sys.executable, "-c", program]
    # As users have it: what is printed is written at the end.
    environment = os.environ | {"PYTHONUNBUFFERED": ""}
    return subprocess.run(command, capture_output=True, check=False, timeout=SECONDS, env=environment)


@pytest.mark.parametrize("number", SIGNALS)
def test_what_a_shell_has_ignored_stays_ignored(number: signal.Signals) -> None:
    """As nohup does with the end of its terminal."""
    body = f"end_at_interrupts('name')\nos.kill(os.getpid(), {int(number)})\nprint('goes on')"
    result = started(body, shell=f"trap '' {int(number)}; exec \"$@\"")
    assert (result.returncode, result.stdout, result.stderr) == (0, b"goes on\n", b"")


def test_a_terminal_that_is_gone_takes_no_line() -> None:
    result = started("os.close(2)\nending('name')(15, None)\nprint('not reached')")
    assert (result.returncode, result.stdout) == (INTERRUPTED, b"")


def test_nothing_is_flushed_at_an_interrupt() -> None:
    """What a library has half written stays where it is."""
    result = started("sys.stdout.write('half')\nending('name')(2, None)")
    assert (result.returncode, result.stdout) == (130, b"")
    assert result.stderr == b"name: interrupted; nothing was written\n"


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_streams_that_are_missing(closed: str) -> None:
    """Files that are opened later do not take their place; input is empty, output goes nowhere."""
    body = (
        "open_missing_streams()\n"
        "file = os.open('/dev/null', os.O_RDONLY)\n"
        "print('a', file=sys.stdout or missing)\nprint('b', file=sys.stderr or missing)\n"
        "sys.exit(7 if file > 2 and os.read(0, 1) == b'' else 1)"
    )
    result = started(body, shell=f'exec "$@" {"" if closed.startswith("0<&-") else "0</dev/null"} {closed}')
    assert result.returncode == 7
    assert result.stdout == (b"" if "1>&-" in closed else b"a\n")
    assert result.stderr == (b"" if "2>&-" in closed else b"b\n")
