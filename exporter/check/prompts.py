# SPDX-License-Identifier: Apache-2.0
"""Prompts of the check: what each call of one is fed, and what torch and ONNX Runtime make of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fastmmoe.exporter.check.layer_major import Calls, Load, run_calls
from fastmmoe.exporter.check.structure import CheckFailed
from fastmmoe.exporter.manifest import language_model_info
from fastmmoe.exporter.model import Model
from fastmmoe.runtime.backends.base import Backend, Feeds
from fastmmoe.runtime.backends.batch import Batch, CachedRows
from fastmmoe.runtime.bundle import graph_io, signatures
from fastmmoe.runtime.bundle.manifest import LanguageModelInfo
from fastmmoe.runtime.method.call import NO_VISUAL_TOKENS, Chunk
from fastmmoe.runtime.method.policy import Policy
from fastmmoe.runtime.method.schedule import Schedule
from fastmmoe.runtime.types import Array, Say

TEXT_BEFORE, TEXT_AFTER = 7, 24
DECODE_STEPS = 3
SEED = 0

Embed = Callable[[Array], Array]


@dataclass(frozen=True)
class Prompt:
    """A prefill around a picture, and decode steps whose tokens are chosen before.

    Attributes:
        embeds: [T, H] of the prefill.
        visual_index: int32 [V].
        steps: [1, H] of each decode step.
    """

    embeds: Array
    visual_index: Array
    schedule: Schedule
    steps: tuple[Array, ...]

    @property
    def chunks(self) -> list[Chunk]:
        """What each call appends."""
        text = self.schedule.for_text()
        decoded = [Chunk(0, embeds, NO_VISUAL_TOKENS, text) for embeds in self.steps]
        return [Chunk(0, self.embeds, self.visual_index, self.schedule), *decoded]


@dataclass(frozen=True)
class Outcome:
    """What a prompt came to: logits [1, vocab] of each call, and the prefill's survivors at each site."""

    logits: list[Array]
    kept_index: list[Array]


def make_prompt(schedule: Schedule, features: Array, embed: Embed, vocab_size: int, seed: int) -> Prompt:
    """A random prompt around the picture's features [V, H], with random tokens after it."""
    rng = np.random.default_rng(seed)
    visual_index = np.arange(TEXT_BEFORE, TEXT_BEFORE + len(features), dtype=np.int32)
    ids = rng.integers(0, vocab_size, TEXT_BEFORE + len(features) + TEXT_AFTER + DECODE_STEPS)
    rows = embed(ids)
    embeds, steps = rows[:-DECODE_STEPS].copy(), rows[-DECODE_STEPS:]
    embeds[visual_index] = features
    return Prompt(embeds, visual_index, schedule, tuple(steps[i : i + 1] for i in range(DECODE_STEPS)))


def run_in(backend: Backend, prompt: Prompt) -> Outcome:
    """The calls on a backend, one after the other.

    Raises:
        CheckFailed: the tokens or positions that the graph goes on with are not those of its logits and inputs.
    """
    batch, logits = _Batch(_Asked(backend)), []  # type: ignore[arg-type]
    kept_index: list[Array] = []
    for n, chunk in enumerate(prompt.chunks):
        logits.append(batch.extend([chunk], alpha=backend.policy.alpha, seed=SEED))
        kept_index = [kept.copy() for kept in batch.kept_index] if n == 0 else kept_index
    return Outcome(logits, kept_index)


def run_in_torch(
    model: Model, prompts: Sequence[Prompt], cache_dtypes: Sequence[str], load: Load, say: Say
) -> list[Outcome]:
    """The calls of all prompts in one pass over the weights.

    Args:
        model: computes in float32.
        cache_dtypes: of each prompt.
        load: values of a parameter of the language model by its name.
    """
    info, language_model = language_model_info(model.config), model.graphs.language_model
    longest = model.config.max_position_embeddings
    sites = [graph_io.kept_index(s) for s in range(len(model.policy.sites))]
    calls = [
        _Feeding(info, model.policy, longest, cache_dtype).calls_of(prompt)
        for prompt, cache_dtype in zip(prompts, cache_dtypes, strict=True)
    ]
    found = run_calls(language_model, language_model.program(), calls, [graph_io.LOGITS, *sites], load, say)
    return [
        Outcome([call[graph_io.LOGITS].numpy() for call in of_prompt], [of_prompt[0][site].numpy() for site in sites])
        for of_prompt in found
    ]


class _Batch(Batch):
    """Feeds another alpha to each site, so that one site does not pass for another."""

    def prepare(self, *args: Any, **kwargs: Any) -> tuple[Feeds, CachedRows]:
        feeds, after = super().prepare(*args, **kwargs)
        if graph_io.ALPHA in feeds:
            sites = len(feeds[graph_io.ALPHA])
            feeds = {**feeds, graph_io.ALPHA: np.linspace(0.2, 0.8, sites, dtype=np.float32)}
        return feeds, after


class _Asked:
    """A backend that is asked for the next tokens and positions, too, which are checked."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def extend(self, feeds: Feeds, caches: Any, wanted: Sequence[str]) -> dict[str, Array]:
        names = (graph_io.NEXT_IDS, graph_io.NEXT_POSITION_IDS)
        found = dict(self._backend.extend(feeds, caches, [*wanted, *names]))
        last = np.asarray(feeds[graph_io.SEQUENCE_OFFSETS])[1:] - 1
        expected = (found[graph_io.LOGITS].argmax(-1), np.asarray(feeds[graph_io.POSITION_IDS])[last] + 1)
        is_finite = np.isfinite(found[graph_io.LOGITS]).all()
        for name, values in zip(names, expected, strict=True):
            given = found.pop(name)
            # That logits are no numbers is said by whoever gets them.
            if is_finite and not np.array_equal(given, values):
                raise CheckFailed(f"language_model: {name} is {given.tolist()}, expected {values.tolist()}")
        return found


class _Feeding:
    """A backend that computes nothing and keeps what it is fed."""

    provider = "none"

    def __init__(self, info: LanguageModelInfo, policy: Policy, longest: int, cache_dtype: str) -> None:
        self.info, self.policy, self.longest, self._cache_dtype = info, policy, longest, cache_dtype
        self._feeds: list[Feeds] = []
        self._capacities: tuple[int, ...] = ()

    def calls_of(self, prompt: Prompt) -> Calls:
        batch = _Batch(self)  # type: ignore[arg-type]
        for chunk, coming in zip(prompt.chunks, (len(prompt.steps), *([0] * len(prompt.steps))), strict=True):
            batch.extend([chunk], alpha=self.policy.alpha, seed=SEED, new_tokens=[coming])
        shapes = signatures.cache_shapes(self.info, self.policy, self._cache_dtype, 1, self._capacities)
        caches = {name: (shape, getattr(torch, dtype)) for name, (shape, dtype) in shapes.items()}
        return Calls([{n: torch.from_numpy(a) for n, a in feeds.items()} for feeds in self._feeds], caches)

    def new_caches(self, sequences: int, capacities: Sequence[int], before: Any | None = None) -> None:
        assert before is None and not self._capacities, "the first call makes room for all"
        self._capacities = tuple(capacities)

    def extend(self, feeds: Feeds, caches: Any, wanted: Sequence[str]) -> dict[str, Array]:
        self._feeds.append({name: np.ascontiguousarray(value) for name, value in feeds.items()})
        return {name: np.zeros((1, 1), np.float32) for name in wanted}
