# SPDX-License-Identifier: Apache-2.0
"""The requests that are measured: every repetition runs each setting once, so that drift hits all of them alike.

A request does what `VLM.generate` does, and its parts are the times that the runtime keeps of every request. It decodes
a fixed number of tokens, whatever they are.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fastmmoe.runtime.bench.settings import BenchOptions, Setting
from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.generation import RequestStats, Run, since
from fastmmoe.runtime.machines.power import Meter
from fastmmoe.runtime.method.schedule import Schedule
from fastmmoe.runtime.request.inputs import ModelInputs
from fastmmoe.runtime.types import Say
from fastmmoe.runtime.vlm import VLM

FRAME = (640, 480)
"""Width and height of the drawn picture: a camera's."""


@dataclass(frozen=True)
class Request:
    """One call of the model's user, of one sequence or of a packed batch. Times are milliseconds.

    Attributes:
        start_ms: since the first of the measured requests.
        preprocess_ms, vision_ms, prefill_ms: of all sequences.
        steps_ms: of each decode step of all sequences.
        stats, schedule: of the first sequence; all are alike.
    """

    start_ms: float
    preprocess_ms: float
    vision_ms: float
    prefill_ms: float
    steps_ms: tuple[float, ...]
    whole_ms: float
    stats: RequestStats
    schedule: Schedule


@dataclass(frozen=True)
class Round:
    """The requests that ran at once; joules: of all of them, None where nothing measures them."""

    setting: Setting
    requests: tuple[Request, ...]
    wall_ms: float
    joules: float | None


def draw_picture() -> Any:
    """A table top with four things on it, uint8 [480, 640, 3] RGB."""
    from PIL import Image

    from fastmmoe.runtime.camera.sources import draw_moving

    return np.asarray(Image.fromarray(draw_moving(0.5)[0]).resize(FRAME))


class Bench:
    """Measures a loaded bundle.

    Args:
        meter: measures energy; None = nothing does.
        say: is called with a line before each repetition.
    Raises:
        InvalidRequest: pictures or a prompt that the bundle does not take.

    Attributes:
        options: as they were given.
        prompt: the request as it is.
    """

    def __init__(self, vlm: VLM, options: BenchOptions, meter: Meter | None = None, say: Say = lambda _: None) -> None:
        self._vlm, self.options, self._meter, self._say = vlm, options, meter, say
        pictures: Sequence[Any] = options.images or (draw_picture(),)
        content = [{"type": "image", "image": picture} for picture in pictures]
        self._messages = [{"role": "user", "content": [*content, {"type": "text", "text": options.prompt}]}]
        self.prompt = vlm.processor(self._messages, max_tiles=options.max_tiles)
        self._begin = time.perf_counter()

    def run(self) -> list[Round]:
        """Warm up, then measure.

        Raises:
            InvalidRequest: a request that the bundle does not take.
        """
        settings, options = self.options.settings(), self.options
        for setting in settings:
            self._check_room(setting)
        workers = max(setting.concurrency for setting in settings)
        with ThreadPoolExecutor(workers) as pool:
            for number in range(options.warmup):
                self._say(f"warm-up {number + 1} of {options.warmup}")
                for setting in settings:
                    self._round(setting, pool)
            self._begin = time.perf_counter()
            rounds = []
            for number in range(options.repetitions):
                self._say(f"repetition {number + 1} of {options.repetitions}")
                # Whoever comes after a larger request is not always the same.
                first = number % len(settings)
                rounds += [self._round(setting, pool) for setting in settings[first:] + settings[:first]]
        return rounds

    def _check_room(self, setting: Setting) -> None:
        """Raise InvalidRequest where prompt and answer have no room: the request would be shorter than it is said."""
        own, longest, new = len(self.prompt.input_ids), self._vlm.backend.longest, self.options.new_tokens
        tokens = own if setting.depth is None else setting.depth
        if tokens < own:
            raise InvalidRequest(f"--depth {tokens}: the prompt has {own:,} tokens as it is; give as many or more")
        # The last token is never fed back.
        if tokens + new - 1 > longest:
            raise InvalidRequest(
                f"a prompt of {tokens:,} tokens and {new:,} new ones: the model takes {longest:,} positions; lower "
                "--depth, --new-tokens or --max-tiles"
            )

    def _round(self, setting: Setting, pool: ThreadPoolExecutor) -> Round:
        before = None if self._meter is None else self._meter.joules()
        if setting.concurrency == 1:
            requests = [self._request(setting)]
            wall_ms = requests[0].whole_ms
        else:
            start_line = threading.Barrier(setting.concurrency + 1)

            def started() -> Request:
                start_line.wait()
                return self._request(setting)

            futures = [pool.submit(started) for _ in range(setting.concurrency)]
            start_line.wait()
            start = time.perf_counter()
            requests = [future.result() for future in futures]
            wall_ms = since(start)
        joules = None if self._meter is None or before is None else self._meter.joules() - before
        return Round(setting, tuple(requests), wall_ms, joules)

    def _request(self, setting: Setting) -> Request:
        vlm, options = self._vlm, self.options.request(setting.retention)
        start = time.perf_counter()
        start_ms = 1e3 * (start - self._begin)
        inputs = [
            lengthened(vlm.processor(self._messages, max_tiles=options.max_tiles), setting.depth)
            for _ in range(setting.batch)
        ]
        preprocess_ms = since(start)
        runs = [vlm.start(group, options) for group in vlm.groups(inputs, options)]
        for run in runs:
            _decode(vlm, run)
        whole_ms = since(start)
        stats = [one for run in runs for one in run.stats]
        firsts = [run.stats[0] for run in runs]
        return Request(
            start_ms,
            preprocess_ms,
            sum(one.vision_ms for one in stats),
            sum(one.prefill_ms for one in firsts),
            tuple(sum(steps) for steps in zip(*(one.decode_ms for one in firsts), strict=True)),
            whole_ms,
            stats[0],
            runs[0].schedules[0],
        )


def _decode(vlm: VLM, run: Run) -> None:
    """All tokens of a run as text, where a request would have ended, too."""
    streams = [vlm.processor.new_stream() for _ in run.stats]
    for tokens in run.tokens():
        for token in tokens:
            streams[token.sequence].push(token.id)


def lengthened(inputs: ModelInputs, tokens: int | None) -> ModelInputs:
    """The prompt with its own text after it, again and again, up to so many tokens; None = as it is."""
    if tokens is None or tokens == len(inputs.input_ids):
        return inputs
    text = np.delete(inputs.input_ids, inputs.visual_index)
    more = np.resize(text, tokens - len(inputs.input_ids)).astype(inputs.input_ids.dtype)
    return replace(inputs, input_ids=np.concatenate([inputs.input_ids, more]))
