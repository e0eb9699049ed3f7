# SPDX-License-Identifier: Apache-2.0
"""Measure exports with their whole check: CPU seconds, time, anonymous memory; and the peer's export of the same.

    python scripts/benchmark_export.py run CHECKPOINT OUT [-- OPTIONS]
    python scripts/benchmark_export.py peer CHECKPOINT OUT --environment DIR
    python scripts/benchmark_export.py compare CHECKPOINT SCRATCH --environment DIR [--repeats N] [-- OPTIONS]

CHECKPOINT is one of scripts/make_random_checkpoint.py, or any other; OPTIONS are those of fastmmoe-export. `peer`
installs tensorrt-edgellm 0.11.0 with pip into an environment of its own at its first call. Anonymous memory is RssAnon
of all processes together, every 50 ms: what cannot be given back to a file.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmark_tools.errors import BenchmarkError

from fastmmoe.runtime.cli.command import run_command

PEER = "tensorrt-edgellm"
VERSION = "0.11.0"
TORCH = "torch==2.13.0"
SECONDS = 0.05
EXPORT = "import sys; from fastmmoe.exporter.start import main; sys.exit(main())"


@dataclass(frozen=True)
class Run:
    """One export. Seconds; bytes of the greatest anonymous memory, and of what was written."""

    cpu: float
    wall: float
    anonymous: int
    written: int

    def row(self, what: str) -> str:
        """A row of the table."""
        sizes = (f"{size / 1e9:.2f} GB" for size in (self.anonymous, self.written))
        return f"| {what} | {self.cpu:.1f} | {self.wall:.1f} | {' | '.join(sizes)} |"


TABLE = "| export | CPU s | s | anonymous memory | written |\n| --- | --: | --: | --: | --: |"


def measure(command: Sequence[str], out: Path, log: Path, environment: dict[str, str] | None = None) -> Run:
    """Run an export into a directory that is not there.

    Raises:
        BenchmarkError: it fails; its last lines are in the message.
    """
    if out.exists():
        raise BenchmarkError(f"{out} is there; give a new directory")
    start, peak = time.perf_counter(), 0
    with log.open("w") as lines:
        process = subprocess.Popen(command, stdout=lines, stderr=subprocess.STDOUT, env=environment)
        while True:
            # Waits without taking the process's times away, which wait4 returns.
            found, status, usage = os.wait4(process.pid, os.WNOHANG)
            if found:
                break
            peak = max(peak, anonymous_bytes(process.pid))
            time.sleep(SECONDS)
    process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.perf_counter() - start
    if process.returncode != 0:
        tail = " / ".join(log.read_text(errors="replace").splitlines()[-3:])
        raise BenchmarkError(f"{command[0]} ended with {process.returncode}: {tail}")
    written = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    if not written:
        raise BenchmarkError(f"{command[0]} has written nothing to {out}")
    return Run(usage.ru_utime + usage.ru_stime, wall, peak, written)


def anonymous_bytes(pid: int) -> int:
    """RssAnon of a process and all below it; 0 of those that have ended."""
    total = 0
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                total += 1024 * int(line.split()[1])
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += sum(anonymous_bytes(int(child)) for child in (task / "children").read_text().split())
    except (FileNotFoundError, ProcessLookupError):
        pass
    return total


def ours(checkpoint: Path, out: Path, options: Sequence[str]) -> Run:
    """fastmmoe-export, check included."""
    command = [sys.executable, "-c", EXPORT, str(checkpoint), str(out), *options]
    return measure(command, out, out.with_suffix(".log"))


def peer(checkpoint: Path, out: Path, environment: Path) -> Run:
    """tensorrt-edgellm-export, which has no check."""
    install(environment)
    command = [str(environment / "bin" / "tensorrt-edgellm-export"), str(checkpoint), str(out)]
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return measure(command, out, out.with_suffix(".log"), inherited)


def install(environment: Path) -> None:
    """The peer in an environment of its own, once."""
    if (environment / "bin" / "tensorrt-edgellm-export").is_file():
        return
    print(f"installing {PEER} {VERSION} into {environment} ...", flush=True)
    python = environment / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    for packages in ([TORCH], [f"{PEER}[tools]=={VERSION}", TORCH]):
        subprocess.run([str(python), "-m", "pip", "install", "-q", *packages], check=True)
    # It comes built for CUDA, which this torch is not.
    subprocess.run([str(python), "-m", "pip", "uninstall", "-q", "-y", "torchvision"], check=True)


def compare(checkpoint: Path, scratch: Path, environment: Path, options: Sequence[str], repeats: int) -> None:
    """Both by turns; medians."""
    install(environment)
    scratch.mkdir(parents=True, exist_ok=True)
    runs: dict[str, list[Run]] = {"fastmmoe-export with its check": [], f"{PEER}-export {VERSION}": []}
    for _ in range(repeats):
        for what, found in runs.items():
            out = scratch / "out"
            shutil.rmtree(out, ignore_errors=True)
            found.append(ours(checkpoint, out, options) if "check" in what else peer(checkpoint, out, environment))
            print(found[-1].row(what), flush=True)
            shutil.rmtree(out)
    print(f"\nMedians of {repeats}:\n\n{TABLE}")
    for what, found in runs.items():
        parts = ([getattr(run, name) for run in found] for name in ("cpu", "wall", "anonymous", "written"))
        cpu, wall, anonymous, written = map(statistics.median, parts)
        print(Run(cpu, wall, int(anonymous), int(written)).row(what))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure exports: CPU seconds, time and anonymous memory.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, help_text in (
        ("run", "fastmmoe-export with its check"),
        ("peer", f"{PEER} {VERSION}"),
        ("compare", "both by turns"),
    ):
        command = commands.add_parser(name, help=help_text)
        command.add_argument("checkpoint", type=Path)
        command.add_argument("out", type=Path, help="new; the log stands beside it")
        if name != "run":
            command.add_argument("--environment", type=Path, required=True, help="of the peer; made if it is not there")
        if name == "compare":
            command.add_argument("--repeats", type=int, default=3, help="default %(default)s")
    own, options = split(sys.argv[1:])
    found = parser.parse_args(own)
    found.options = options
    return found


def split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """This script's arguments, and after -- those of fastmmoe-export."""
    place = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:place], arguments[place + 1 :]


def _main() -> int:
    a = _parse()
    if a.command == "compare":
        compare(a.checkpoint, a.out, a.environment, a.options, a.repeats)
        return 0
    found = ours(a.checkpoint, a.out, a.options) if a.command == "run" else peer(a.checkpoint, a.out, a.environment)
    print(f"{TABLE}\n{found.row(a.command)}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command("benchmark_export", _main))
