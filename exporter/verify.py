# SPDX-License-Identifier: Apache-2.0
"""Checks an export: the graphs' structure, and ONNX Runtime against torch on an input where the choices are clear."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import torch

from fastmmoe.exporter.families import Model
from fastmmoe.exporter.graph_inputs import cache_shape
from fastmmoe.exporter.ops import SPARSE_MOE
from fastmmoe.runtime import abi
from fastmmoe.runtime.bundle import GRAPHS, graph_file
from fastmmoe.runtime.images import deepseek_vl2_layout
from fastmmoe.runtime.policy import Schedule, plan_request
from fastmmoe.runtime.processor_config import DeepseekVl2ProcessorConfig, ProcessorConfig
from fastmmoe.runtime.session import Graphs

TEXT_BEFORE, TEXT_AFTER = 7, 24
NOISE = 1e-6
SEEDS = 8
DECODE_STEPS = 3

Embed = Callable[[np.ndarray], np.ndarray]


class CheckFailed(Exception):
    """The written graphs do not do what the checkpoint says: a mistake of this package, not of the user."""


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


def check_structure(directory: Path, model: Model, *, portable: bool) -> str:
    """onnx.checker with strict shape inference on every graph, and the experts counted.

    Returns:
        One line on what was counted.
    Raises:
        CheckFailed: the expert weights in the graph are not all experts of all MoE layers.
    """
    for name in GRAPHS:
        for variant in {graph_file(name), graph_file(name, portable=portable)}:
            onnx.checker.check_model(str(directory / variant), full_check=True)
    config = model.config
    expected = [config.moe.num_experts] * len(config.moe_layers)
    graph = ir.load(directory / graph_file("language_model")).graph
    nodes = [node for node in graph if node.op_type == SPARSE_MOE.name]
    names = [t.name for t in SPARSE_MOE.inputs]
    found = []
    for node in nodes:
        gate_up, down = (node.inputs[names.index(name)] for name in ("gate_up", "down"))
        assert gate_up is not None and down is not None and gate_up.shape is not None and down.shape is not None
        if gate_up.shape[0] != down.shape[0]:
            raise CheckFailed(f"{node.name}: gate_up of {gate_up.shape[0]} experts, down of {down.shape[0]}")
        found.append(gate_up.shape[0])
    if found != expected:
        raise CheckFailed(f"experts by MoE layer in the graph: {found}, in the checkpoint: {expected}")
    return f"{sum(expected)} experts in {len(expected)} MoE layers, all in the graph"


@dataclass(frozen=True)
class Case:
    """One prompt of the language model, and what torch makes of it: prefill, then greedy decode steps."""

    embeds: np.ndarray
    visual_index: np.ndarray
    schedule: Schedule
    logits: list[np.ndarray]
    tokens: list[int]
    kept_index: list[np.ndarray]


@dataclass(frozen=True)
class Expectation:
    """What torch computes from one picture-like input: vision features and prompts around them."""

    vision_inputs: dict[str, np.ndarray]
    image_features: np.ndarray
    cases: list[Case]


def expect(model: Model, processor: ProcessorConfig, embed: Embed, atol: float) -> Expectation:
    """Run the torch modules on one picture, unmodified and at the stored retention.

    Args:
        model: with float32 activations and exactly the values the bundle holds.
        embed: token ids [T] -> embeddings [T, H]; the graph's, as a look-up proves itself in the logits.
        atol: of the comparison to come; a prompt whose logits noise moves further is avoided.
    Raises:
        CheckFailed: no input of several seeds makes the pruning decisive.
    """
    vision_inputs = _picture(processor)
    features = _run_vision(model, vision_inputs)
    retentions = sorted({1.0, model.policy.retention}, reverse=True)
    return Expectation(vision_inputs, features, [_decisive_case(model, features, r, embed, atol) for r in retentions])


def compare(graphs: Graphs, expected: Expectation, alpha: float, atol: float) -> list[Difference]:
    """Run loaded graphs on the same input.

    Raises:
        CheckFailed: other tokens survive.
    """
    features = graphs.image_features(expected.vision_inputs)
    differences = [Difference("vision", _distance(features, expected.image_features), atol)]
    for case in expected.cases:
        label = f"language model, retention {case.schedule.retention:g}"
        sequence = graphs.new_sequence()
        logits = [sequence.extend(case.embeds, case.visual_index, case.schedule, alpha)]
        for ours, theirs in zip(sequence.kept_index, case.kept_index, strict=True):
            if not np.array_equal(ours, theirs):
                raise CheckFailed(f"{label}: ONNX Runtime and torch keep different tokens, though the choice is clear")
        decode, nothing = _decode_schedule(case.schedule), case.visual_index[:0]
        logits += [sequence.extend(graphs.embed(np.array([t])), nothing, decode, alpha) for t in case.tokens]
        differences.append(Difference(f"{label}, prefill", _distance(logits[0], case.logits[0]), atol))
        worst = max(_distance(a, b) for a, b in zip(logits[1:], case.logits[1:], strict=True))
        differences.append(Difference(f"{label}, {DECODE_STEPS} decode steps", worst, atol))
    return differences


def _decisive_case(model: Model, features: np.ndarray, retention: float, embed: Embed, atol: float) -> Case:
    """A prompt whose survivors and experts do not change under noise, and what torch makes of it.

    Where two scores nearly tie, two correct implementations may keep different tokens or take different experts; such
    a prompt proves nothing. If noise moves the logits by more than atol in every prompt, the first with clear
    survivors is taken.
    """
    visual_index = np.arange(TEXT_BEFORE, TEXT_BEFORE + len(features), dtype=np.int32)
    schedule = plan_request(
        model.policy,
        visual_tokens=len(features),
        moe_layers=model.config.moe_layers,
        top_k=model.config.moe.top_k,
        retention=retention,
    )
    second_best: Case | None = None
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        embeds = embed(rng.integers(0, model.config.vocab_size, TEXT_BEFORE + len(features) + TEXT_AFTER))
        embeds[visual_index] = features
        case = _run_language_model(model, embeds, visual_index, schedule, embed)
        noise = NOISE * rng.standard_normal(embeds.shape).astype(embeds.dtype)
        # A near tie falls the other way under the noise or under its opposite.
        others = [_run_language_model(model, embeds + n, visual_index, schedule, None) for n in (noise, -noise)]
        if not all(np.array_equal(a, b) for o in others for a, b in zip(o.kept_index, case.kept_index, strict=True)):
            continue
        if all(_distance(o.logits[0], case.logits[0]) <= atol for o in others):
            return case
        second_best = second_best or case
    if second_best is None:
        raise CheckFailed(f"the choice of surviving tokens hangs on noise of {NOISE:g} for {SEEDS} random prompts")
    return second_best


def _run_language_model(
    model: Model, embeds: np.ndarray, visual_index: np.ndarray, schedule: Schedule, decode_with: Embed | None
) -> Case:
    """Prefill in torch and, with `decode_with`, greedy decode steps."""
    module, policy = model.graphs.language_model, model.policy
    state = _empty_cache(model)
    logits: list[np.ndarray] = []
    tokens: list[int] = []
    with streamed_weights(module, lambda name: model.load(f"language_model.{name}")):
        outputs, state = _step(module, _feeds(embeds, visual_index, schedule, policy.alpha, 0), state)
        kept_index = [outputs[abi.kept_index(stage)].numpy() for stage in range(len(policy.prune_layers))]
        logits.append(outputs[abi.LOGITS].numpy()[0])
        for step in range(DECODE_STEPS if decode_with else 0):
            assert decode_with is not None
            tokens.append(int(np.argmax(logits[-1])))
            row, past = decode_with(np.array(tokens[-1:])), len(embeds) + step
            feeds = _feeds(row, visual_index[:0], _decode_schedule(schedule), policy.alpha, past)
            outputs, state = _step(module, feeds, state)
            logits.append(outputs[abi.LOGITS].numpy()[0])
    return Case(embeds, visual_index, schedule, logits, tokens, kept_index)


def _step(
    module: torch.nn.Module, feeds: dict[str, np.ndarray], state: dict[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    outputs = module({name: torch.from_numpy(value) for name, value in feeds.items()} | state)
    return outputs, {_past_name(name): value for name, value in outputs.items() if name.startswith("present")}


def _feeds(
    rows: np.ndarray, visual_index: np.ndarray, plan: Schedule, alpha: float, past: int
) -> dict[str, np.ndarray]:
    feeds = {
        abi.INPUTS_EMBEDS: rows,
        abi.POSITION_IDS: np.arange(past, past + len(rows), dtype=np.int32),
        abi.VISUAL_INDEX: visual_index,
        abi.VISUAL_TOP_K: np.array(plan.visual_top_k, np.int32),
        abi.ALPHA: np.full(len(plan.keep), alpha, np.float32),
    }
    for stage, (keep, merge) in enumerate(zip(plan.keep, plan.merge, strict=True)):
        feeds[abi.keep_slots(stage)] = np.zeros(keep, np.int8)
        feeds[abi.merge_slots(stage)] = np.zeros(merge, np.int8)
    return feeds


def _empty_cache(model: Model) -> dict[str, torch.Tensor]:
    language_model = model.graphs.language_model
    *heads, width = cache_shape(model.config)
    cache = {
        name: torch.zeros(1, *heads, 0, width)
        for i, layer in enumerate(language_model.layers)
        for name in abi.past_names(i, layer.self_attn.cache_parts)
    }
    if language_model.sliding_window is not None:
        for group in range(len(language_model.groups)):
            cache[abi.past_position_ids(group)] = torch.zeros(0, dtype=torch.int32)
    return cache


def _past_name(present: str) -> str:
    return present.replace("present.", "past_key_values.").replace("present_position", "past_position")


def _decode_schedule(schedule: Schedule) -> Schedule:
    none = (0,) * len(schedule.keep)
    return Schedule(schedule.retention, 0, none, none, schedule.visual_top_k)


def _picture(config: ProcessorConfig) -> dict[str, np.ndarray]:
    """Vision inputs of one picture of blocks of colour."""
    tiles = 2 if isinstance(config, DeepseekVl2ProcessorConfig) else 1
    side = config.tile_size
    blocks = np.random.default_rng(0).uniform(-1, 1, (tiles, 3, 16, 16)).astype(np.float32)
    step = -(-side // 16)
    pixels = np.ascontiguousarray(blocks.repeat(step, axis=2).repeat(step, axis=3)[:, :, :side, :side])
    if not isinstance(config, DeepseekVl2ProcessorConfig):
        return {abi.PIXEL_VALUES: pixels}
    layout = deepseek_vl2_layout([(1, 1)], config.grid_side, global_view_first=config.global_view_first)
    return {abi.PIXEL_VALUES: pixels, abi.LAYOUT_INDEX: layout}


def _run_vision(model: Model, vision_inputs: dict[str, np.ndarray]) -> np.ndarray:
    inputs = {name: torch.from_numpy(value) for name, value in vision_inputs.items()}
    with streamed_weights(model.graphs.vision, lambda name: model.load(f"vision.{name}")):
        return model.graphs.vision(inputs)[abi.IMAGE_FEATURES].numpy()


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max(initial=0))


@contextmanager
def streamed_weights(module: torch.nn.Module, load: Callable[[str], torch.Tensor]) -> Iterator[None]:
    """Let a module without values run: each submodule's own parameters are there only while it runs.

    The most memory needed is the parameters on one path from the root to a leaf, not the model's.
    """
    names = {id(p): name for name, p in module.named_parameters()}
    handles = []

    def fill(m: torch.nn.Module, _: object) -> None:
        m.empty_parameters = dict(m._parameters)  # type: ignore[assignment]
        for key, parameter in m._parameters.items():
            if parameter is not None:
                m._parameters[key] = torch.nn.Parameter(load(names[id(parameter)]), requires_grad=False)

    def empty(m: torch.nn.Module, _: object, __: object) -> None:
        m._parameters.update(m.empty_parameters)  # type: ignore[arg-type]

    for m in module.modules():
        if any(p is not None for p in m._parameters.values()):
            handles += [m.register_forward_pre_hook(fill), m.register_forward_hook(empty, always_call=True)]
    try:
        with torch.no_grad():
            yield
    finally:
        for handle in handles:
            handle.remove()
