# SPDX-License-Identifier: Apache-2.0
"""From measured requests to rows: samples, what stands for them, and the least time beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from fastmmoe.runtime.bench.measuring import Request, Round
from fastmmoe.runtime.bench.result import Row, Test
from fastmmoe.runtime.bench.settings import Setting
from fastmmoe.runtime.bench.statistics import P90, deviation, mean, median, quantile
from fastmmoe.runtime.bundle.manifest import Manifest
from fastmmoe.runtime.cost.rates import matrix_bytes
from fastmmoe.runtime.cost.roofline import Rates, Work, decode_work, prefill_work, vision_work

UNIT = Rates(1.0, 1.0, "counts alone")


@dataclass(frozen=True)
class Bounds:
    """Least times of a request; ms: None without rates."""

    manifest: Manifest
    parts: Mapping[str, int]
    rates: Rates | None

    @staticmethod
    def of(manifest: Manifest, rates: Rates | None) -> Bounds:
        """Those of a bundle."""
        return Bounds(manifest, matrix_bytes(manifest), rates)

    def vision(self, request: Request) -> Work:
        """The pictures of a sequence."""
        return vision_work(self.manifest, self.parts, self.rates or UNIT, request.stats.tiles)

    def prefill(self, request: Request, batch: int) -> Work:
        """The prompts of a batch."""
        schedule, tokens = request.schedule, prompt_tokens(request)
        return prefill_work(self.manifest, self.parts, self.rates or UNIT, schedule, tokens, sequences=batch)

    def step(self, request: Request, batch: int) -> Work:
        """The first decode step of a batch, after which the caches grow."""
        text, rows = request.schedule.for_text(), request.stats.cache_lengths
        return decode_work(self.manifest, self.parts, self.rates or UNIT, text, rows, batch)


def prompt_tokens(request: Request) -> int:
    """T, visual tokens included."""
    return request.stats.text_tokens + request.stats.visual_tokens


def make_rows(rounds: Sequence[Round], manifest: Manifest, rates: Rates | None) -> Iterator[Row]:
    """Rows in the order of the settings.

    Args:
        rates: of what computed; None = not known.
    """
    bounds = Bounds.of(manifest, rates)
    by_setting: dict[Setting, list[Round]] = {}
    for one in rounds:
        by_setting.setdefault(one.setting, []).append(one)
    # As every repetition begins with another one.
    settings = sorted(by_setting, key=[one.setting for one in rounds].index)
    alone = [r for one in rounds if one.setting.batch == one.setting.concurrency == 1 for r in one.requests]
    if alone and alone[0].stats.tiles:
        yield _vision(alone, bounds)
    for setting in settings:
        yield from _of_setting(setting, by_setting[setting], bounds)


def _vision(requests: Sequence[Request], bounds: Bounds) -> Row:
    """Of all requests that ran alone: no setting changes it."""
    first = requests[0]
    row = _row("vision", Setting(1.0), first, [one.vision_ms for one in requests], first.stats.visual_tokens)
    return _beside(replace(row, retention=None, kept_visual_tokens=()), bounds, bounds.vision(first))


def _of_setting(setting: Setting, rounds: Sequence[Round], bounds: Bounds) -> Iterator[Row]:
    requests = [request for one in rounds for request in one.requests]
    first, batch = requests[0], setting.batch
    vision, prefill, step = bounds.vision(first), bounds.prefill(first, batch), bounds.step(first, batch)
    if setting.concurrency == 1:
        tokens = batch * prompt_tokens(first)
        yield _beside(_row("prefill", setting, first, [one.prefill_ms for one in requests], tokens), bounds, prefill)
        steps = [mean(one.steps_ms) for one in requests]
        row = replace(_row("decode", setting, first, steps, batch), depth=prompt_tokens(first))
        yield _beside(row, bounds, step)
    if batch == 1:
        times = [one.preprocess_ms + one.vision_ms + one.prefill_ms for one in requests]
        row = _row("first_token", setting, first, times, prompt_tokens(first))
        row = replace(row, depth=setting.depth, tokens_per_s=None)
        yield _beside(row, bounds, vision + prefill)
    yield _request(setting, rounds, bounds)


def _request(setting: Setting, rounds: Sequence[Round], bounds: Bounds) -> Row:
    requests = [request for one in rounds for request in one.requests]
    first, batch = requests[0], setting.batch
    tokens, answers = batch * (1 + len(first.steps_ms)), batch * setting.concurrency
    row = _row("request", setting, first, [one.whole_ms for one in requests], tokens)
    seconds = median([one.wall_ms for one in rounds]) / 1e3
    joules = [one.joules / answers for one in rounds if one.joules is not None]
    work = bounds.prefill(first, batch)
    for _ in range(batch):
        work += bounds.vision(first)
    for _ in first.steps_ms:
        work += bounds.step(first, batch)
    row = replace(
        row,
        depth=setting.depth,
        tokens_per_s=setting.concurrency * tokens / seconds if seconds > 0 else None,
        requests_per_s=answers / seconds if seconds > 0 else None,
        joules=mean(joules) if joules else None,
    )
    return _beside(row, bounds, work)


def _row(test: Test, setting: Setting, first: Request, samples: Sequence[float], tokens: int) -> Row:
    middle = median(samples)
    return Row(
        test=test,
        retention=setting.retention,
        depth=None,
        batch=setting.batch,
        concurrency=setting.concurrency,
        tokens=tokens,
        visual_tokens=first.stats.visual_tokens,
        kept_visual_tokens=first.stats.kept_visual_tokens,
        samples_ms=tuple(samples),
        mean_ms=mean(samples),
        sd_ms=deviation(samples),
        median_ms=middle,
        p90_ms=quantile(samples, P90),
        tokens_per_s=1e3 * tokens / middle if middle > 0 else None,
    )


def _beside(row: Row, bounds: Bounds, work: Work) -> Row:
    """The row with its least time, where rates are known."""
    if bounds.rates is None or row.median_ms <= 0:
        return row
    return replace(row, roofline_ms=work.ms, roofline_share=work.ms / row.median_ms)
