# SPDX-License-Identifier: Apache-2.0
"""What is to be measured, and the settings of which each repetition runs every one once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.method.policy import UNMODIFIED, Policy
from fastmmoe.runtime.request.options import RequestOptions

RETENTIONS = (1.0, 0.5, 0.25)
REPETITIONS, WARMUP, NEW_TOKENS = 5, 1, 32
PROMPT = "What is in the picture?"
MOST = {"-n": 10_000, "--warmup": 10_000, "--batch": 256, "--concurrency": 64}


def retentions_for(policy: Policy, method: str | None = None) -> tuple[float, ...]:
    """Those that a bundle is measured at where none are given: 1 alone where nothing is pruned.

    Args:
        method: what is asked for; None = the bundle's.
    """
    return (1.0,) if (method or policy.default_method) == UNMODIFIED else RETENTIONS


@dataclass(frozen=True)
class Setting:
    """A kind of request.

    Attributes:
        depth: tokens of the prompt, which is made longer by text; None = as many as it has.
        batch: sequences of one packed call.
        concurrency: requests at once, each by a thread of its own.
    """

    retention: float
    depth: int | None = None
    batch: int = 1
    concurrency: int = 1


@dataclass(frozen=True)
class BenchOptions:
    """The settings, as lists that are multiplied, and the request that they change.

    Attributes:
        repetitions, warmup: requests of each setting that count, and that do not.
        new_tokens: decoded by every request, whatever they are.
        images: paths or files; none = a drawn picture.
        method, max_tiles: as in `RequestOptions`.
    Raises:
        InvalidRequest: a value outside its range.
    """

    retentions: tuple[float, ...] = RETENTIONS
    depths: tuple[int, ...] = ()
    batches: tuple[int, ...] = (1,)
    concurrencies: tuple[int, ...] = (1,)
    repetitions: int = REPETITIONS
    warmup: int = WARMUP
    new_tokens: int = NEW_TOKENS
    images: tuple[str | bytes, ...] = ()
    prompt: str = PROMPT
    method: str | None = None
    max_tiles: int | None = None

    def __post_init__(self) -> None:
        for retention in self.retentions:
            self.request(retention)
        _check("-n", (self.repetitions,), 1)
        _check("--warmup", (self.warmup,), 0)
        # The first token comes of the prefill.
        _check("--new-tokens", (self.new_tokens,), 2)
        _check("--depth", self.depths, 1)
        _check("--batch", self.batches, 1)
        _check("--concurrency", self.concurrencies, 1)

    def request(self, retention: float) -> RequestOptions:
        """The options of a request of this retention."""
        return RequestOptions.of(
            {
                "retention": retention,
                "method": self.method,
                "max_tiles": self.max_tiles,
                "max_new_tokens": self.new_tokens,
            }
        )

    def check_one_kind(self, option: str) -> None:
        """Raise InvalidRequest where these are not requests of one kind, one after the other, as the option wants."""
        settings = self.settings()
        if len(settings) > 1 or settings[0].concurrency > 1:
            raise InvalidRequest(
                f"{option} is of one kind of request, these are {len(settings)}: give one -r, such as -r 0.5, and at "
                "most one --depth and --batch"
            )

    def settings(self) -> list[Setting]:
        """Every setting once: packed sequences and requests at once are not multiplied with each other."""
        shapes = [(batch, 1) for batch in self.batches]
        shapes += [(1, count) for count in self.concurrencies if count > 1]
        found = [
            Setting(retention, depth, batch, concurrency)
            for depth in self.depths or (None,)
            for batch, concurrency in shapes
            for retention in self.retentions
        ]
        return list(dict.fromkeys(found))


def _check(option: str, values: Sequence[int], least: int) -> None:
    for value in values:
        if value < least:
            raise InvalidRequest(f"{option} {value}: expected {least} or more")
        if value > MOST.get(option, value):
            raise InvalidRequest(f"{option} {value}: expected at most {MOST[option]}")
