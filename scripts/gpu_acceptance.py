# SPDX-License-Identifier: Apache-2.0
"""Prove the CUDA kernels on a GPU, without TensorRT and without a network, in two runs of some minutes.

    python scripts/gpu_acceptance.py --pack 1 FOLDER      what the first run needs, to be copied to the machine
    python scripts/gpu_acceptance.py --run 1 --out OUT    there, in FOLDER: kernels, their times, their counters
    python scripts/gpu_acceptance.py --pack 2 FOLDER
    python scripts/gpu_acceptance.py --run 2 --out OUT    device loop, peers, whole models
    python scripts/gpu_acceptance.py --rehearse --run 1   the same without a GPU, in tiny sizes

OUT/acceptance.json is whole after each section. Exit code 0: all passed; 1: some did not; 3: all passed but those for
which the machine lacks something; 2: what the user can mend. What is measured, and what it means: docs/gpu.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
# The machine has no installed fastmmoe; `tests.support` has the tables of cases.
sys.path[:0] = [str(REPOSITORY)]
# Packages that a folder brought, for those that the machine lacks.
sys.path.append(str(REPOSITORY / ".build" / "gpu_acceptance" / "site"))

from gpu_acceptance_tools import pack, runner  # noqa: E402
from gpu_acceptance_tools.plan import SECTIONS  # noqa: E402
from gpu_acceptance_tools.work import Work  # noqa: E402

from fastmmoe.runtime.cli.command import run_command  # noqa: E402


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=int, choices=(1, 2))
    parser.add_argument("--rehearse", action="store_true", help="without a GPU: emulator, torch on the CPU, stand-ins")
    parser.add_argument("--out", type=Path, default=REPOSITORY / ".build" / "gpu_acceptance" / "out")
    parser.add_argument("--limit", type=float, default=0, metavar="SECONDS", help="for the run, instead of the planned")
    parser.add_argument("--only", nargs="+", choices=[s.name for s in SECTIONS], help="these sections alone")
    parser.add_argument("--pack", type=int, choices=(1, 2), metavar="RUN", help="make FOLDER, and say how large it is")
    parser.add_argument("--list-files", type=int, choices=(1, 2), metavar="RUN", help="print what --pack would copy")
    parser.add_argument("--ort-provider", type=Path, metavar="FILE", help="for --pack 2: ORT's CUDA provider library")
    parser.add_argument("--python", metavar="3.X", help="for --pack: the machine's, if it lacks msgspec")
    parser.add_argument("folder", type=Path, nargs="?", metavar="FOLDER")
    # How a section's own process is started.
    parser.add_argument("--section", help=argparse.SUPPRESS)
    parser.add_argument("--budget", type=float, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    parsed = parser.parse_args(arguments)
    chosen = [parsed.run, parsed.pack, parsed.list_files]
    if sum(value is not None for value in chosen) != 1:
        parser.error("give one of --run, --pack and --list-files")
    if (parsed.pack is None) != (parsed.folder is None):
        parser.error("FOLDER belongs to --pack, which needs it")
    return parsed


def main(arguments: argparse.Namespace) -> int:
    """The exit code."""
    if arguments.list_files is not None:
        print("\n".join(map(str, pack.files_of(arguments.list_files))))
        return 0
    if arguments.pack is not None:
        return pack.make(arguments.pack, arguments.folder, arguments.ort_provider, arguments.python)
    out = arguments.out.resolve()
    if arguments.section is not None:
        work = Work(arguments.rehearse, arguments.scratch, out)
        return runner.run_section(arguments.section, work, arguments.budget)
    only = arguments.only or ()
    sections = [section for section in SECTIONS if section.name in only]
    with tempfile.TemporaryDirectory(prefix="gpu-acceptance-") as scratch:
        work = Work(arguments.rehearse, Path(scratch), out)
        return runner.run_all(arguments.run, work, sections=sections, limit_s=arguments.limit)


if __name__ == "__main__":
    sys.exit(run_command("gpu_acceptance", lambda: main(parse())))
