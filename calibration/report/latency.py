# SPDX-License-Identifier: Apache-2.0
"""Prefill time and time to first token of every setting, measured in one process, the settings taking turns."""

from __future__ import annotations

import datetime
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from fastmmoe.calibration.report.measure import Store
from fastmmoe.calibration.report.questions import Questions
from fastmmoe.calibration.report.settings import Planner, Setting
from fastmmoe.runtime.backends.onnxruntime import ONNXRUNTIME_VERSION
from fastmmoe.runtime.files import write_atomically
from fastmmoe.runtime.generation import Run, since
from fastmmoe.runtime.machines.threads import usable_cores
from fastmmoe.runtime.request.options import RequestOptions
from fastmmoe.runtime.types import Say
from fastmmoe.runtime.vlm import VLM

FILE = "latency.json"


class Machine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Machine and time of a measurement; load: the whole machine's, mean of the last minute, at the start."""

    processor: str
    cores: int
    system: str
    python: str
    numpy: str
    onnxruntime: str
    date: str
    load: float


class Times(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Milliseconds of a setting, one number for each request, in the same order for all settings."""

    setting: Setting
    prefill_ms: tuple[float, ...]
    ttft_ms: tuple[float, ...]


class Latency(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Measured times; `identity` is that of the `Store`."""

    identity: str
    machine: Machine
    times: tuple[Times, ...]

    def fits(self, settings: Sequence[Setting], requests: int) -> bool:
        """Whether these are times of just these settings, by so many requests each."""
        return {t.setting for t in self.times} == set(settings) and len(self.times[0].prefill_ms) == requests

    def of(self, setting: Setting) -> Times:
        """The times of one of the settings."""
        return next(times for times in self.times if times.setting == setting)


def measure_latency(
    vlm: VLM,
    planner: Planner,
    questions: Questions,
    store: Store,
    settings: Sequence[Setting],
    *,
    requests: int,
    say: Say,
) -> Latency:
    """Measure, or read what was measured before of the same settings and as many requests.

    Every request is made by every setting before the next one, so that drift of the machine's speed hits all alike; the
    order turns from request to request. One request that warms up is not counted. What is left of damaged times is
    measured again.
    """
    path = store.folder / FILE
    found = _read(path, say)
    if found is not None and found.fits(settings, requests):
        say(f"the times are in {path} already")
        return found
    machine = describe_machine()
    picked = np.linspace(0, len(questions.items) - 1, requests).round().astype(int).tolist()
    prefill: dict[Setting, list[float]] = {setting: [] for setting in settings}
    ttft: dict[Setting, list[float]] = {setting: [] for setting in settings}
    for count, number in enumerate([picked[0], *picked]):
        turn = count % len(settings)
        for setting in (*settings[turn:], *settings[:turn]):
            prefill_ms, ttft_ms = _request(vlm, planner, questions, setting, number)
            if count:
                prefill[setting].append(prefill_ms)
                ttft[setting].append(ttft_ms)
        if count and (count % 10 == 0 or count == requests):
            say(f"times: {count} of {requests} requests by {len(settings)} settings")
    latency = Latency(
        identity=store.identity,
        machine=machine,
        times=tuple(Times(setting=s, prefill_ms=tuple(prefill[s]), ttft_ms=tuple(ttft[s])) for s in settings),
    )
    write_atomically(path, msgspec.json.encode(latency))
    return latency


def describe_machine() -> Machine:
    """This machine, now."""
    return Machine(
        processor=_processor(),
        cores=usable_cores(),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        numpy=np.__version__,
        onnxruntime=ONNXRUNTIME_VERSION,
        date=datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        load=round(os.getloadavg()[0], 2),
    )


def _request(vlm: VLM, planner: Planner, questions: Questions, setting: Setting, number: int) -> tuple[float, float]:
    """(prefill, time to first token) in milliseconds of one question, from its picture on."""
    start = time.perf_counter()
    inputs = vlm.processor(questions.items[number].sample.messages)
    preprocess_ms = since(start)
    run = Run(vlm.manifest, vlm.backend, [inputs], RequestOptions(**planner.options(setting), max_new_tokens=1))
    next(run.tokens())
    stats = run.stats[0]
    stats.preprocess_ms = preprocess_ms
    assert stats.ttft_ms is not None, "nothing ends these requests early"
    return stats.prefill_ms, stats.ttft_ms


def _processor() -> str:
    """Its name, where the kernel tells."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _read(path: Path, say: Say) -> Latency | None:
    if not path.is_file():
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=Latency)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        say(f"{path}: damaged ({error}): measured again")
        return None
