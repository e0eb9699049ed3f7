# SPDX-License-Identifier: Apache-2.0
"""Time one request by thread count and spinning, on the machine as it is and beside busy processes.

    python scripts/measure_threads.py BUNDLE [--repeats N] [--busy N ...]

Every repeat runs all variants once, in a random order, so that drift hits all of them alike. A ratio compares a time
with that of the default (one thread for each core, no spinning) in the same repeat. The answers must be equal.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnxruntime
from PIL import Image

from fastmmoe.calibration.scenes import draw_scene, make_scene
from fastmmoe.runtime.backends.onnxruntime import OnnxRuntime
from fastmmoe.runtime.backends.settings import Settings
from fastmmoe.runtime.cli.command import run_command
from fastmmoe.runtime.errors import FastmmoeError
from fastmmoe.runtime.machines.threads import usable_cores
from fastmmoe.runtime.vlm import VLM

QUESTION = "Which cell holds the cone?"
RETENTION = 0.5
MAX_NEW_TOKENS = 4
# A busy process ends by itself where this script is killed.
BUSY = "import time\nend = time.monotonic() + 600\nwhile time.monotonic() < end: pass"


def main() -> int:
    """Print one Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1, 2], help="busy processes beside the requests")
    arguments = parser.parse_args()
    return run_command("measure_threads", lambda: measure(arguments.bundle, arguments.repeats, arguments.busy))


def measure(bundle: Path, repeats: int, busy: list[int]) -> int:
    """Measure and print; the exit code is 0."""
    image = draw_scene(make_scene("test", 0))
    models = {variant: load(bundle, *variant) for variant in variants()}
    print(
        f"{usable_cores()} cores, ONNX Runtime {onnxruntime.__version__}, load {os.getloadavg()[0]:.1f}; {repeats} "
        f"repeats; medians, ratio to the default of the same repeat\n\n"
        "| busy processes | threads | spinning | request ms | CPU ms | ratio |\n| --- | --- | --- | --- | --- | --- |"
    )
    for count in busy:
        with busy_processes(count):
            times = measure_all(models, image, repeats)
        for (threads, spinning), rows in times.items():
            ratio = statistics.median(row[0] / base[0] for row, base in zip(rows, times[default()], strict=True))
            wall, cpu = (statistics.median(column) for column in zip(*rows, strict=True))
            print(f"| {count} | {threads} | {'yes' if spinning else 'no'} | {wall:.0f} | {cpu:.0f} | {ratio:.2f} |")
    return 0


def default() -> tuple[int, bool]:
    """What a VLM does by itself."""
    return usable_cores(), False


def variants() -> list[tuple[int, bool]]:
    """(threads, spinning); one thread has nothing to wait for."""
    return [(1, False), *((threads, spinning) for threads in {2, usable_cores()} for spinning in (False, True))]


def load(bundle: Path, threads: int, spinning: bool) -> VLM:
    """The bundle with graphs of this variant."""
    vlm = VLM(bundle, threads=1)
    vlm.backend = OnnxRuntime(bundle, vlm.manifest, Settings(threads=threads, spinning=spinning))
    return vlm


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """So many processes that take a core each."""
    processes = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def measure_all(
    models: dict[tuple[int, bool], VLM], image: Image.Image, repeats: int
) -> dict[tuple[int, bool], list[tuple[float, float]]]:
    """(wall, CPU) milliseconds of every request; FastmmoeError where answers differ."""
    content = [{"type": "image", "image": image}, {"type": "text", "text": QUESTION}]
    messages = [{"role": "user", "content": content}]
    times: dict[tuple[int, bool], list[tuple[float, float]]] = {variant: [] for variant in models}
    answers = set()
    order = list(models)
    for repeat in range(repeats + 1):
        random.Random(repeat).shuffle(order)
        for variant in order:
            wall, cpu = time.perf_counter(), time.process_time()
            answer = models[variant].generate(messages, retention=RETENTION, max_new_tokens=MAX_NEW_TOKENS)
            # The first repeat warms up.
            if repeat:
                times[variant].append((1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - cpu)))
            answers.add(answer.token_ids)
    if len(answers) != 1:
        raise FastmmoeError(f"{len(answers)} different answers")
    return times


if __name__ == "__main__":
    sys.exit(main())
