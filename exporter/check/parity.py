# SPDX-License-Identifier: Apache-2.0
"""Checks an export: the graphs' structure, and ONNX Runtime against torch on an input where the choices are clear."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fastmmoe.exporter.check.streamed import streamed_weights
from fastmmoe.exporter.check.structure import CheckFailed
from fastmmoe.exporter.manifest import language_model_info
from fastmmoe.exporter.model import Model
from fastmmoe.exporter.targets import ATOL
from fastmmoe.exporter.torch_backend import TorchBackend
from fastmmoe.runtime.backends.base import Backend
from fastmmoe.runtime.backends.batch import Batch
from fastmmoe.runtime.backends.onnxruntime import OnnxRuntime
from fastmmoe.runtime.backends.settings import Settings
from fastmmoe.runtime.bundle.manifest import Manifest
from fastmmoe.runtime.method.call import NO_VISUAL_TOKENS, Chunk
from fastmmoe.runtime.method.policy import UNMODIFIED
from fastmmoe.runtime.method.schedule import Schedule, plan_request
from fastmmoe.runtime.request.config import ProcessorConfig
from fastmmoe.runtime.request.family import family_of
from fastmmoe.runtime.types import Say

TEXT_BEFORE, TEXT_AFTER = 7, 24
# Ten times what float32 rounding does, so that a choice that rounding can turn turns here too.
NOISE = 1e-5
SEEDS = 8
DECODE_STEPS = 3
# Over bfloat16 caches FmmAttention may round, too, what it multiplies with their rows: so many times as far from torch
# as these caches alone move torch. Of visual tokens, among which ties are near, at least the share may be others.
SPREAD = 6
MOVED = 0.1
SEED = 0

Embed = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Difference:
    """Greatest absolute difference between ONNX Runtime and torch of one output."""

    what: str
    value: float
    tolerance: float

    @property
    def is_ok(self) -> bool:
        """Within the tolerance (NaN is not)."""
        return self.value <= self.tolerance


@dataclass(frozen=True)
class Written:
    """The graphs that the check runs.

    Attributes:
        name: what their lines are called beside ONNX Runtime, such as "float32 twin"; "" = the bundle itself.
    """

    directory: Path
    manifest: Manifest
    name: str = ""

    @property
    def variants(self) -> dict[str, bool]:
        """Label -> whether it is the portable one."""
        label = f"onnxruntime, {self.name}" if self.name else "onnxruntime"
        return {label: False} | ({f"{label}, portable": True} if self.manifest.portable else {})

    def load(self, graph: str, *, portable: bool = False) -> OnnxRuntime:
        """A backend with this graph alone."""
        return OnnxRuntime(self.directory, self.manifest, Settings(portable=portable), graphs=(graph,))


@dataclass(frozen=True)
class Case:
    """One prompt of the language model, and what torch makes of it: prefill, then greedy decode steps.

    Attributes:
        exact: the same with float32 caches, where the graphs have others; None = they have these.
    """

    embeds: np.ndarray
    visual_index: np.ndarray
    schedule: Schedule
    logits: list[np.ndarray]
    tokens: list[int]
    kept_index: list[np.ndarray]
    exact: Case | None = None


def compare(model: Model, written: Written, atol: float | None, say: Say) -> list[Difference]:
    """Run torch and the written graphs on one picture, unmodified and by every method in the graph.

    One language model is loaded at a time, so that no more memory is needed than to run the bundle.

    Args:
        model: with float32 activations and exactly the values the graphs hold.
        atol: greatest difference allowed; None = `ATOL`, over bfloat16 caches by `SPREAD` and `MOVED`.
        say: is called with a line before each step that takes long.
    Raises:
        CheckFailed: other tokens survive, or no prompt of several seeds makes the choices clear.
    """
    label = next(iter(written.variants))
    vision_inputs = _picture(written.manifest.processor)
    say("checking vision: in torch, then in ONNX Runtime ...")
    features = _run_vision(model, vision_inputs)
    distance = _distance(written.load("vision").image_features(vision_inputs), features)
    vision = Difference(f"{label}: vision", distance, ATOL if atol is None else atol)
    check = _LanguageModelCheck(model, written, features, written.load("embedding").embed, atol, say)
    return [vision, *check.run(_schedules(model, len(features)))]


def _schedules(model: Model, visual_tokens: int) -> list[Schedule]:
    """The unmodified model, then each method in the graph, at the stored retention or at half of the tokens."""
    retention = model.policy.retention if model.policy.retention < 1 else 0.5
    plans = [(UNMODIFIED, 1.0)] + [(method, retention) for method in model.policy.prune_layers]
    return [
        plan_request(
            model.policy,
            method=method,
            visual_tokens=visual_tokens,
            moe_layers=model.config.moe_layers,
            top_k=model.config.moe.top_k,
            retention=R,
        )
        for method, R in plans
    ]


@dataclass(frozen=True)
class _LanguageModelCheck:
    """Compares the language model's variants with torch. embed: token ids -> embeddings, for all of them."""

    model: Model
    written: Written
    features: np.ndarray
    embed: Embed
    atol: float | None
    say: Say

    def run(self, schedules: list[Schedule]) -> list[Difference]:
        """Differences by schedule, on the first prompt that all variants agree on with torch or that is clear.

        Each round runs the schedules that are still open: in torch, then in one variant after another.
        """
        done: dict[int, list[Difference]] = {}
        for seed in range(SEEDS):
            open_ones = [number for number in range(len(schedules)) if number not in done]
            cases = {number: self._torch_case(schedules[number], seed) for number in open_ones}
            found = {label: self._run_variant(label, portable, cases) for label, portable in self._variants.items()}
            for number in open_ones:
                settled = self._settle(cases[number], {label: found[label][number] for label in found}, seed)
                if settled is not None:
                    done[number] = settled
            if len(done) == len(schedules):
                return [difference for number in sorted(done) for difference in done[number]]
        ties = next(schedule for number, schedule in enumerate(schedules) if number not in done)
        raise CheckFailed(f"{_label(ties)}: near ties decide about the tokens of {SEEDS} random prompts")

    @property
    def _variants(self) -> dict[str, bool]:
        return self.written.variants

    def _torch_case(self, schedule: Schedule, seed: int) -> Case:
        """A random prompt around the picture, and what torch makes of it."""
        again = f", prompt {seed + 1}, as near ties decided about the one before" if seed else ""
        self.say(f"checking {_label(schedule)}: in torch{again} ...")
        visual_index = np.arange(TEXT_BEFORE, TEXT_BEFORE + len(self.features), dtype=np.int32)
        rng = np.random.default_rng(seed)
        ids = rng.integers(0, self.model.config.vocab_size, TEXT_BEFORE + len(self.features) + TEXT_AFTER)
        embeds = self.embed(ids)
        embeds[visual_index] = self.features
        case = _run_language_model(self.model, embeds, visual_index, schedule, self.embed)
        if self.model.precision.cache_dtype == "float32":
            return case
        self.say(f"checking {_label(schedule)}: in torch with float32 caches ...")
        exact = _run_language_model(
            self.model, embeds, visual_index, schedule, self.embed, tokens=case.tokens, cache_dtype="float32"
        )
        return replace(case, exact=exact)

    def _run_variant(self, label: str, portable: bool, cases: dict[int, Case]) -> dict[int, list[Difference] | None]:
        """Load a variant, run every case, and let it go."""
        self.say(f"checking {', then '.join(_label(case.schedule) for case in cases.values())}: in {label} ...")
        backend = self.written.load("language_model", portable=portable)
        return {number: self._differences(label, backend, case) for number, case in cases.items()}

    def _differences(self, label: str, backend: OnnxRuntime, case: Case) -> list[Difference] | None:
        """Differences of logits, or how many other tokens survive; None where those are too many."""
        ours = _run_case(backend, case.embeds, case.visual_index, case.schedule, self.embed, case.tokens)
        what = f"{label}: {_label(case.schedule)}"
        if not _all_equal(ours.kept_index, case.kept_index):
            share, most = _moved(ours, case), self._most_moved(case)
            return None if share > most else [Difference(f"{what}, share of other survivors", share, most)]
        steps = {"prefill": slice(1), f"{DECODE_STEPS} decode steps": slice(1, None)}
        return [
            Difference(f"{what}, {part}", _worst(ours, case, of), self._tolerance(case, of))
            for part, of in steps.items()
        ]

    def _tolerance(self, case: Case, of: slice) -> float:
        """The greatest difference of these steps' logits from the case's that is allowed."""
        if self.atol is not None or case.exact is None:
            return ATOL if self.atol is None else self.atol
        return max(ATOL, SPREAD * _worst(case.exact, case, of))

    def _most_moved(self, case: Case) -> float:
        """The greatest share of other survivors that is allowed."""
        return 0 if case.exact is None else max(MOVED, SPREAD * _moved(case.exact, case))

    def _settle(self, case: Case, found: dict[str, list[Difference] | None], seed: int) -> list[Difference] | None:
        """The differences that count, or None where another prompt must decide.

        Where two scores nearly tie, two correct implementations may keep different tokens or take different experts:
        a prompt that differs is a failure only if noise does not change what torch itself makes of it.
        """
        results = [d for differences in found.values() for d in differences or ()]
        if all(d is not None for d in found.values()) and all(d.is_ok for d in results):
            return results
        worst = max((d.value for d in results if not d.is_ok), default=0.0)
        if not _is_clear(self.model, case, worst, seed):
            return None
        survivors = [label for label, differences in found.items() if differences is None]
        if survivors:
            raise CheckFailed(f"{_label(case.schedule)}: {survivors[0]} and torch keep different tokens")
        return results


def _label(schedule: Schedule) -> str:
    return f"{schedule.method}, retention {schedule.retention:g}" if schedule.sites else "unmodified model"


def _is_clear(model: Model, case: Case, difference: float, seed: int) -> bool:
    """Whether noise, and its opposite, leave torch's survivors as they are and move its logits far less than that."""
    noise = NOISE * np.random.default_rng(seed).standard_normal(case.embeds.shape).astype(case.embeds.dtype)
    for moved in (case.embeds + noise, case.embeds - noise):
        other = _run_language_model(model, moved, case.visual_index, case.schedule, None)
        if not _all_equal(other.kept_index, case.kept_index):
            return False
        # A near tie that falls the other way moves them as far in torch. (No number is smaller than NaN.)
        if difference > 0 and _distance(other.logits[0], case.logits[0]) > difference / 4:
            return False
    return True


def _all_equal(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def _worst(a: Case, b: Case, of: slice) -> float:
    """The greatest difference of the logits of these steps."""
    return max(_distance(x, y) for x, y in zip(a.logits[of], b.logits[of], strict=True))


def _moved(a: Case, b: Case) -> float:
    """The greatest share, over the sites, of the visual tokens that survive in one and not in the other; 0 to 1."""
    rows_a = rows_b = np.arange(len(b.embeds))
    shares = [0.0]
    for index_a, index_b, keep in zip(a.kept_index, b.kept_index, b.schedule.keep, strict=True):
        rows_a, rows_b = rows_a[index_a], rows_b[index_b]
        shares.append(len(np.setdiff1d(rows_a, rows_b)) / max(keep, 1))
    return max(shares)


def _run_language_model(
    model: Model,
    embeds: np.ndarray,
    visual_index: np.ndarray,
    schedule: Schedule,
    decode_with: Embed | None,
    *,
    tokens: Sequence[int] | None = None,
    cache_dtype: str | None = None,
) -> Case:
    """`_run_case` in torch; cache_dtype: None = the model's."""
    backend = _torch_backend(model)
    if cache_dtype is not None:
        backend = replace(backend, cache_dtype=cache_dtype)
    with streamed_weights(backend.language_model, lambda name: model.load(f"language_model.{name}")):
        return _run_case(backend, embeds, visual_index, schedule, decode_with, tokens)


def _run_case(
    backend: Backend,
    embeds: np.ndarray,
    visual_index: np.ndarray,
    schedule: Schedule,
    decode_with: Embed | None,
    tokens: Sequence[int] | None = None,
) -> Case:
    """Prefill and, with `decode_with`, decode steps: of the given tokens, or the most probable ones."""
    batch, alpha, fed = Batch(backend), backend.policy.alpha, []
    logits = [batch.extend([Chunk(0, embeds, visual_index, schedule)], alpha=alpha, seed=SEED)[0]]
    kept_index = batch.kept_index
    for step in range(DECODE_STEPS if decode_with else 0):
        assert decode_with is not None
        fed.append(int(np.argmax(logits[-1])) if tokens is None else tokens[step])
        chunk = Chunk(0, decode_with(np.array(fed[-1:])), NO_VISUAL_TOKENS, schedule.for_text())
        logits.append(batch.extend([chunk], alpha=alpha, seed=SEED)[0])
    return Case(embeds, visual_index, schedule, logits, fed, kept_index)


def _picture(config: ProcessorConfig) -> dict[str, np.ndarray]:
    """Vision inputs of one picture of blocks of colour, of the size of a tile."""
    side = config.tile_size
    cut = family_of(config).cut(config, [(side, side)], None, 0)
    blocks = np.random.default_rng(0).uniform(-1, 1, (sum(cut.tile_counts), 3, 16, 16)).astype(np.float32)
    step = -(-side // 16)
    pixels = np.ascontiguousarray(blocks.repeat(step, axis=2).repeat(step, axis=3)[:, :, :side, :side])
    return cut.tile_inputs(pixels)


def _torch_backend(model: Model) -> TorchBackend:
    config, cache_dtype = model.config, model.precision.cache_dtype
    info = language_model_info(config)
    return TorchBackend(model.graphs, model.policy, info, config.max_position_embeddings, cache_dtype)


def _run_vision(model: Model, vision_inputs: dict[str, np.ndarray]) -> np.ndarray:
    backend = _torch_backend(model)
    with streamed_weights(model.graphs.vision, lambda name: model.load(f"vision.{name}")):
        return backend.image_features(vision_inputs)


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max(initial=0))
