# SPDX-License-Identifier: Apache-2.0
"""Checks an export: ONNX Runtime against torch on inputs where the choices are clear."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from fastmmoe.exporter.check.experts import Experts
from fastmmoe.exporter.check.layer_major import Calls, Load, run_calls
from fastmmoe.exporter.check.linears import body_difference, stored_linear
from fastmmoe.exporter.check.portable import BodyChecks
from fastmmoe.exporter.check.prompts import DECODE_STEPS, Embed, Outcome, Prompt, make_prompt, run_in, run_in_torch
from fastmmoe.exporter.check.rounding import roundings
from fastmmoe.exporter.check.sessions import MappedOnnxRuntime
from fastmmoe.exporter.check.stored import StoredWeights
from fastmmoe.exporter.check.structure import CheckFailed
from fastmmoe.exporter.graph.inputs import graph_program
from fastmmoe.exporter.model import Model, part_of_experts
from fastmmoe.exporter.targets import ATOL
from fastmmoe.runtime.bundle import graph_io
from fastmmoe.runtime.bundle.manifest import Manifest
from fastmmoe.runtime.method.policy import UNMODIFIED
from fastmmoe.runtime.method.schedule import Schedule, plan_request
from fastmmoe.runtime.request.config import ProcessorConfig
from fastmmoe.runtime.request.family import family_of
from fastmmoe.runtime.types import Array, Say

# Ten times what float32 rounding does, so that a choice that rounding can turn turns here too.
NOISE = 1e-5
SEEDS = 8
# Of the picture's features in a prompt: with the text more than a sliding window of 128, and few enough to be quick.
MOST_VISUAL = 160
# Over bfloat16 caches FmmAttention may round, too, what it multiplies with their rows: so many times as far from torch
# as these caches alone move torch. Of visual tokens, among which ties are near, at least the share may be others.
SPREAD = 6
MOVED = 0.1


@dataclass(frozen=True)
class Difference:
    """Greatest absolute difference between ONNX Runtime and torch of one output.

    Attributes:
        against: "exact" in place of torch: what runs, beside itself without rounding, of the output's norm.
    """

    what: str
    value: float
    tolerance: float
    against: Literal["torch", "exact"] = "torch"

    @property
    def is_ok(self) -> bool:
        """Within the tolerance (NaN is not)."""
        return self.value <= self.tolerance


@dataclass(frozen=True)
class Written:
    """The graphs that the check runs.

    Attributes:
        weights: the bundle's tensors, by graph.
        experts: values of the graph's inputs that are experts' weights; None = the graph has them.
        name: what its lines are called beside ONNX Runtime, such as "read as float32"; "" = the bundle itself.
    """

    directory: Path
    manifest: Manifest
    weights: Mapping[str, StoredWeights]
    experts: Experts | None = None
    name: str = ""

    @property
    def label(self) -> str:
        """What computes, as the check's lines call it."""
        return f"onnxruntime, {self.name}" if self.name else "onnxruntime"

    def load(self, graph: str, *, is_exact: bool = True) -> MappedOnnxRuntime:
        """A backend with this graph alone; is_exact: see `MappedOnnxRuntime`."""
        experts = self.experts.inputs if self.experts is not None and graph == "language_model" else {}
        return MappedOnnxRuntime(self.directory, self.manifest, graph, experts=experts, is_exact=is_exact)

    def read(self, model: Model, graph: str) -> Load:
        """Values of the graph's parameters by name: what is written, as the model's modules take it."""
        stored, dtypes = self.weights[graph], dict(dict(model.graphs.items())[graph].named_parameters())

        def load(name: str) -> torch.Tensor:
            experts = self.experts.parameter(name) if self.experts is not None else None
            if experts is not None:
                return experts
            own, part = part_of_experts(name)
            if part and stored.has(own):
                return stored.tensor(stored.parameters[own].name + part)
            if not stored.has(name):
                return model.load(f"{graph}.{name}")
            linear = stored_linear(model, graph, name, stored)
            return stored.parameter(name).to(dtypes[name].dtype) if linear is None else linear.floats()

        return load


@dataclass(frozen=True)
class Case:
    """A prompt, and what torch makes of it; exact: the same with float32 caches, None = the graphs have these."""

    prompt: Prompt
    outcome: Outcome
    exact: Outcome | None = None

    @property
    def schedule(self) -> Schedule:
        """The prompt's."""
        return self.prompt.schedule


def compare(model: Model, written: Written, atol: float | None, say: Say) -> list[Difference]:
    """Run torch and the written graphs on one picture, unmodified and by every method in the graph.

    One session is there at a time, and weights are mapped from the files that were written, by both sides.

    Args:
        model: with float32 activations, for which the written weights have values.
        atol: greatest difference allowed; None = `ATOL`, over bfloat16 caches by `SPREAD` and `MOVED`.
        say: is called with a line before each step that takes long, and while it does.
    Raises:
        CheckFailed: other tokens survive, or no prompt of several seeds makes the choices clear.
    """
    limit = ATOL if atol is None else atol
    vision_inputs = _picture(written.manifest.processor)
    say(f"checking vision: in torch, then in {written.label} ...")
    has_bodies = written.manifest.portable and "vision" in written.manifest.operator_graphs
    with BodyChecks(limit) if has_bodies else nullcontext() as bodies:
        features = _run_vision(model, written, vision_inputs, say)
    distance = _distance(written.load("vision").image_features(vision_inputs), features)
    features = features[:MOST_VISUAL]
    embedding = _Embedding(written, model)
    check = _LanguageModelCheck(model, written, features, embedding, atol, say)
    schedules = _schedules(model, len(features))
    found = check.run(schedules)
    vision = Difference(f"{written.label}: vision", distance, limit)
    differences = [vision, Difference(f"{written.label}: embedding", embedding.worst, 0.0), *found]
    differences += _of_bodies(written, bodies, limit)
    rounded = roundings(written.load, written.manifest, vision_inputs, check.prompt_of(schedules[0]), say)
    differences += (Difference(f"{written.label} as it runs: {one[0]}", *one[1:], "exact") for one in rounded)
    if written.manifest.portable and "FmmLinear" in written.manifest.ops:
        worst = max(body_difference(model, graph, written.weights[graph]) for graph in written.manifest.operator_graphs)
        differences.append(Difference(f"{written.label}, portable: FmmLinear", worst, limit))
    return differences


def _schedules(model: Model, visual_tokens: int) -> list[Schedule]:
    """The unmodified model, then each method in the graph, at the stored retention or at half of the tokens.

    With methods, visual tokens take another number of experts in each MoE layer, so that none passes for another.
    """
    retention = model.policy.retention if model.policy.retention < 1 else 0.5
    plans = [(UNMODIFIED, 1.0)] + [(method, retention) for method in model.policy.prune_layers]
    moe_layers, top_k = model.config.moe_layers, model.config.moe.top_k
    # Also layers that are top_k apart differ.
    visual_top_k = tuple((i + i // top_k) % top_k + 1 for i in range(len(moe_layers)))
    planned = [
        plan_request(
            model.policy,
            method=method,
            visual_tokens=visual_tokens,
            moe_layers=moe_layers,
            top_k=top_k,
            retention=R,
        )
        for method, R in plans
    ]
    return [schedule if not schedule.sites else replace(schedule, visual_top_k=visual_top_k) for schedule in planned]


class _Embedding:
    """The embedding graph, compared with the table that is written with each prompt; worst: greatest difference."""

    def __init__(self, written: Written, model: Model) -> None:
        self._session, self.worst = written.load("embedding"), 0.0
        self._table = written.weights["embedding"].parameter("weight")

    def __call__(self, ids: Array) -> Array:
        found: Array = self._session.embed(ids)
        expected = self._table[torch.from_numpy(ids).long()].float().numpy()
        self.worst = max(self.worst, _distance(found, expected))
        return found


@dataclass(frozen=True)
class _LanguageModelCheck:
    """Compares the language model with torch. embed: token ids -> embeddings, for both."""

    model: Model
    written: Written
    features: Array
    embed: Embed
    atol: float | None
    say: Say

    def run(self, schedules: list[Schedule]) -> list[Difference]:
        """Differences by schedule, on the first prompt that agrees with torch or that is clear.

        Each round runs the schedules that are still open: all of them in one pass of torch, then in one session.
        """
        done: dict[int, list[Difference]] = {}
        bodies: list[Difference] = []
        for seed in range(SEEDS):
            open_ones = [number for number in range(len(schedules)) if number not in done]
            cases, of_bodies = self._torch_cases([schedules[number] for number in open_ones], seed)
            bodies = bodies or of_bodies
            found = self._run_graph(cases)
            settled = zip(open_ones, self._settle(cases, found, seed), strict=True)
            done |= {number: differences for number, differences in settled if differences is not None}
            if len(done) == len(schedules):
                return [difference for number in sorted(done) for difference in done[number]] + bodies
        ties = next(schedule for number, schedule in enumerate(schedules) if number not in done)
        raise CheckFailed(f"{_label(ties)}: near ties decide about the tokens of {SEEDS} random prompts")

    def prompt_of(self, schedule: Schedule) -> Prompt:
        """The first random prompt of a schedule."""
        return make_prompt(schedule, self.features, self.embed, self.model.config.vocab_size, 0)

    def _torch_cases(self, schedules: Sequence[Schedule], seed: int) -> tuple[list[Case], list[Difference]]:
        """A random prompt around the picture for each schedule, what torch makes of it, and what bodies compute."""
        again = f", prompt {seed + 1}, as near ties decided about the one before" if seed else ""
        self.say(f"checking {_labels(schedules)}: in torch{again} ...")
        vocab_size, dtype = self.model.config.vocab_size, self.model.precision.cache_dtype
        prompts = [make_prompt(schedule, self.features, self.embed, vocab_size, seed) for schedule in schedules]
        dtypes = ["float32"] if dtype == "float32" else [dtype, "float32"]
        checks_bodies = self.written.manifest.portable and seed == 0
        limit = ATOL if self.atol is None else self.atol
        with BodyChecks(limit) if checks_bodies else nullcontext() as bodies:
            outcomes = self._in_torch([(prompt, dtype) for dtype in dtypes for prompt in prompts])
        of_caches, exact = outcomes[: len(prompts)], outcomes[len(prompts) :]
        cases = [Case(*each) for each in itertools.zip_longest(prompts, of_caches, exact)]
        return cases, _of_bodies(self.written, bodies, limit)

    def _in_torch(self, prompts: Sequence[tuple[Prompt, str]]) -> list[Outcome]:
        load = self.written.read(self.model, "language_model")
        return run_in_torch(self.model, [p for p, _ in prompts], [dtype for _, dtype in prompts], load, self.say)

    def _run_graph(self, cases: Sequence[Case]) -> list[list[Difference] | None]:
        """Load the language model, run every case, and let it go."""
        self.say(f"checking {_labels([case.schedule for case in cases])}: in {self.written.label} ...")
        backend = self.written.load("language_model")
        return [self._differences(run_in(backend, case.prompt), case) for case in cases]

    def _differences(self, ours: Outcome, case: Case) -> list[Difference] | None:
        """Differences of logits, or how many other tokens survive; None where those are too many."""
        what = f"{self.written.label}: {_label(case.schedule)}"
        if not _all_equal(ours.kept_index, case.outcome.kept_index):
            share, most = _moved(ours, case.outcome, case.prompt), self._most_moved(case)
            return None if share > most else [Difference(f"{what}, share of other survivors", share, most)]
        steps = {"prefill": slice(1), f"{DECODE_STEPS} decode steps": slice(1, None)}
        return [
            Difference(f"{what}, {part}", _worst(ours, case.outcome, of), self._tolerance(case, of))
            for part, of in steps.items()
        ]

    def _tolerance(self, case: Case, of: slice) -> float:
        """The greatest difference of these steps' logits from the case's that is allowed."""
        if self.atol is not None or case.exact is None:
            return ATOL if self.atol is None else self.atol
        return max(ATOL, SPREAD * _worst(case.exact, case.outcome, of))

    def _most_moved(self, case: Case) -> float:
        """The greatest share of other survivors that is allowed."""
        return 0 if case.exact is None else max(MOVED, SPREAD * _moved(case.exact, case.outcome, case.prompt))

    def _settle(
        self, cases: Sequence[Case], found: Sequence[list[Difference] | None], seed: int
    ) -> list[list[Difference] | None]:
        """The differences that count, or None where another prompt must decide.

        Where two scores nearly tie, two correct implementations may keep different tokens or take different experts:
        a prompt that differs is a failure only if noise does not change what torch itself makes of it.
        """
        unclear = [
            n for n, differences in enumerate(found) if differences is None or not all(d.is_ok for d in differences)
        ]
        is_clear = dict(zip(unclear, self._are_clear([(cases[n], found[n]) for n in unclear], seed), strict=True))
        settled: list[list[Difference] | None] = []
        for n, differences in enumerate(found):
            if differences is None and is_clear[n]:
                raise CheckFailed(f"{_label(cases[n].schedule)}: {self.written.label} and torch keep different tokens")
            settled.append(differences if is_clear.get(n, True) else None)
        return settled

    def _are_clear(self, cases: Sequence[tuple[Case, list[Difference] | None]], seed: int) -> list[bool]:
        """Whether noise, and its opposite, leave torch's survivors as they are and move its logits far less."""
        if not cases:
            return []
        self.say(f"checking {_labels([case.schedule for case, _ in cases])}: whether near ties decide, in torch ...")
        noisy = [prompt for case, _ in cases for prompt in _with_noise(case.prompt, seed)]
        others = self._in_torch([(prompt, self.model.precision.cache_dtype) for prompt in noisy])
        pairs = zip(others[::2], others[1::2], strict=True)
        return [
            all(_is_same(other, case, differences) for other in pair)
            for (case, differences), pair in zip(cases, pairs, strict=True)
        ]


def _with_noise(prompt: Prompt, seed: int) -> Iterator[Prompt]:
    """The prompt with noise, and with its opposite."""
    rng = np.random.default_rng(seed)
    rows = (prompt.embeds, *prompt.steps)
    noise = [NOISE * rng.standard_normal(embeds.shape).astype(embeds.dtype) for embeds in rows]
    for sign in (1, -1):
        embeds, *steps = (one + sign * its for one, its in zip(rows, noise, strict=True))
        yield replace(prompt, embeds=embeds, steps=tuple(steps))


def _is_same(other: Outcome, case: Case, differences: list[Difference] | None) -> bool:
    """Whether a prompt with noise comes to the same as the one without."""
    if not _all_equal(other.kept_index, case.outcome.kept_index):
        return False
    worst = max((d.value for d in differences or () if not d.is_ok), default=0.0)
    # A near tie that falls the other way moves them as far in torch. (No number is smaller than NaN.)
    return not (worst > 0 and _worst(other, case.outcome, slice(None)) > worst / 4)


def _of_bodies(written: Written, bodies: BodyChecks | None, limit: float) -> list[Difference]:
    """What was found of operators' bodies, None = nothing."""
    worst = {} if bodies is None else bodies.worst
    return [Difference(f"{written.label}, portable: {name}", worst[name], limit) for name in worst]


def _label(schedule: Schedule) -> str:
    return f"{schedule.method}, retention {schedule.retention:g}" if schedule.sites else "unmodified model"


def _labels(schedules: Sequence[Schedule]) -> str:
    return ", then ".join(map(_label, schedules))


def _all_equal(a: list[Array], b: list[Array]) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def _worst(a: Outcome, b: Outcome, of: slice) -> float:
    """The greatest difference of the logits of these steps."""
    return max(_distance(x, y) for x, y in zip(a.logits[of], b.logits[of], strict=True))


def _moved(a: Outcome, b: Outcome, prompt: Prompt) -> float:
    """The greatest share, over the sites, of the visual tokens that survive in one and not in the other; 0 to 1."""
    rows_a = rows_b = np.arange(len(prompt.embeds))
    shares = [0.0]
    for index_a, index_b, keep in zip(a.kept_index, b.kept_index, prompt.schedule.keep, strict=True):
        rows_a, rows_b = rows_a[index_a], rows_b[index_b]
        shares.append(len(np.setdiff1d(rows_a, rows_b)) / max(keep, 1))
    return max(shares)


def _picture(config: ProcessorConfig) -> dict[str, Array]:
    """Vision inputs of one picture of blocks of colour, of the size of a tile."""
    side = config.tile_size
    cut = family_of(config).cut(config, [(side, side)], None, 0)
    blocks = np.random.default_rng(0).uniform(-1, 1, (sum(cut.tile_counts), 3, 16, 16)).astype(np.float32)
    step = -(-side // 16)
    pixels = np.ascontiguousarray(blocks.repeat(step, axis=2).repeat(step, axis=3)[:, :, :side, :side])
    return cut.tile_inputs(pixels)


def _run_vision(model: Model, written: Written, vision_inputs: dict[str, Array], say: Say) -> Array:
    vision, inputs = model.graphs.vision, {name: torch.from_numpy(value) for name, value in vision_inputs.items()}
    load, wanted = written.read(model, "vision"), graph_io.IMAGE_FEATURES
    ((found,),) = run_calls(vision, graph_program(model, "vision"), [Calls([inputs], {})], [wanted], load, say)
    features: Array = found[wanted].numpy()
    return features


def _distance(a: Array, b: Array) -> float:
    return float(np.abs(a - b).max(initial=0))
