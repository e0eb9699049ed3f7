# SPDX-License-Identifier: Apache-2.0
"""Stands in for NVIDIA's programs in a rehearsal: python stand_in.py PROGRAM ARGUMENTS... It judges nothing."""

from __future__ import annotations

import subprocess
import sys

KERNELS = ("gate_up_few", "gate_up_tiles", "choose_survivors")
METRICS = (("Duration", "us", "1,234.5"), ("DRAM Throughput", "%", "50.0"), ("Registers Per Thread", "", "64"))


def main(program: str, arguments: list[str]) -> int:
    """The exit code of the program that they would have run, else 0."""
    if program in ("nvidia-smi", "nvcc"):
        print("a stand-in")
        return 0
    if "--import" in arguments:
        print('"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"')
        for n, kernel in enumerate(KERNELS):
            for metric in METRICS:
                print(",".join(f'"{cell}"' for cell in (n, f"void {kernel}<int>(Params)", *metric)))
        return 0
    code = subprocess.run(arguments[arguments.index("--") + 1 :], check=False).returncode
    if program == "compute-sanitizer":
        print("========= ERROR SUMMARY: 0 errors")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
