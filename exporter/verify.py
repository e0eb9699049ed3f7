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
from fastmmoe.runtime.bundle import GRAPHS, Manifest, graph_file
from fastmmoe.runtime.images import deepseek_vl2_layout
from fastmmoe.runtime.policy import Schedule, plan_request
from fastmmoe.runtime.processor_config import DeepseekVl2ProcessorConfig, ProcessorConfig
from fastmmoe.runtime.session import Graphs

TEXT_BEFORE, TEXT_AFTER = 7, 24
NOISE = 1e-6
SEEDS = 8
DECODE_STEPS = 3


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


def compare(directory: Path, manifest: Manifest, model: Model, atol: float, *, portable: bool) -> list[Difference]:
    """Run the bundle and the torch modules on one picture-like input, unmodified and at the stored retention.

    Args:
        model: with float32 activations and exactly the values the bundle holds.
    Raises:
        CheckFailed: no input of several seeds makes the pruning decisive, or survivors differ.
    """
    graphs = Graphs(directory, manifest, portable=portable)
    pixels, layout = _picture(manifest.processor)
    torch_vision = _run_vision(model, pixels, layout)
    vision_inputs = {abi.PIXEL_VALUES: pixels} | ({} if layout is None else {abi.LAYOUT_INDEX: layout})
    differences = [Difference("vision", _distance(graphs.image_features(vision_inputs), torch_vision), atol)]
    for retention in sorted({1.0, manifest.policy.retention}, reverse=True):
        differences += _compare_language_model(graphs, model, torch_vision, retention, atol)
    return differences


def _compare_language_model(
    graphs: Graphs, model: Model, features: np.ndarray, retention: float, atol: float
) -> list[Difference]:
    config, policy = model.config, model.policy
    visual_index = np.arange(TEXT_BEFORE, TEXT_BEFORE + len(features), dtype=np.int32)
    schedule = plan_request(
        policy,
        visual_tokens=len(features),
        moe_layers=config.moe_layers,
        top_k=config.moe.top_k,
        retention=retention,
    )
    embeds, reference = _decisive_reference(graphs, model, features, visual_index, schedule)
    sequence = graphs.new_sequence()
    label = f"language model, retention {retention:g}"
    logits = [sequence.extend(embeds, visual_index, schedule, policy.alpha)]
    for ours, theirs in zip(sequence.kept_index, reference.kept_index, strict=True):
        if not np.array_equal(ours, theirs):
            raise CheckFailed(f"{label}: ONNX Runtime and torch keep different tokens, though the choice is clear")
    decode = _decode_schedule(schedule)
    logits += [
        sequence.extend(graphs.embed(np.array([token])), visual_index[:0], decode, policy.alpha)
        for token in reference.tokens
    ]
    differences = [Difference(f"{label}, prefill", _distance(logits[0], reference.logits[0]), atol)]
    worst = max(_distance(a, b) for a, b in zip(logits[1:], reference.logits[1:], strict=True))
    return [*differences, Difference(f"{label}, {DECODE_STEPS} decode steps", worst, atol)]


@dataclass(frozen=True)
class _Reference:
    logits: list[np.ndarray]
    tokens: list[int]
    kept_index: list[np.ndarray]


def _decisive_reference(
    graphs: Graphs, model: Model, features: np.ndarray, visual_index: np.ndarray, schedule: Schedule
) -> tuple[np.ndarray, _Reference]:
    """A prompt whose survivors do not change under noise, and what torch makes of it.

    Where two scores nearly tie, two correct implementations may keep different tokens; such a prompt proves nothing.
    """
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        ids = rng.integers(0, model.config.vocab_size, TEXT_BEFORE + len(features) + TEXT_AFTER)
        embeds = graphs.embed(ids)
        embeds[visual_index] = features
        reference = _run_language_model(model, embeds, visual_index, schedule, graphs)
        if schedule.keep in ((), (len(features),) * len(schedule.keep)):
            return embeds, reference
        noisy = embeds + NOISE * rng.standard_normal(embeds.shape).astype(embeds.dtype)
        again = _run_language_model(model, noisy, visual_index, schedule, None)
        if all(np.array_equal(a, b) for a, b in zip(reference.kept_index, again.kept_index, strict=True)):
            return embeds, reference
    raise CheckFailed(f"the choice of surviving tokens hangs on noise of {NOISE:g} for {SEEDS} random prompts")


def _run_language_model(
    model: Model, embeds: np.ndarray, visual_index: np.ndarray, schedule: Schedule, decode_with: Graphs | None
) -> _Reference:
    module, policy = model.graphs.language_model, model.policy
    state = _empty_cache(model)
    logits: list[np.ndarray] = []
    tokens: list[int] = []
    kept_index: list[np.ndarray] = []
    steps = 1 + (DECODE_STEPS if decode_with else 0)
    length = 0
    with streamed_weights(module, lambda name: model.load(f"language_model.{name}")):
        for step in range(steps):
            plan = schedule if step == 0 else _decode_schedule(schedule)
            rows = embeds if step == 0 else decode_with.embed(np.array(tokens[-1:]))  # type: ignore[union-attr]
            feeds = _feeds(rows, visual_index if step == 0 else visual_index[:0], plan, policy.alpha, length)
            outputs = module({name: torch.from_numpy(value) for name, value in feeds.items()} | state)
            state = {_past_name(name): value for name, value in outputs.items() if name.startswith("present")}
            length += len(rows)
            logits.append(outputs[abi.LOGITS].numpy()[0])
            if step == 0:
                stages = range(len(policy.prune_layers))
                kept_index = [outputs[abi.kept_index(stage)].numpy() for stage in stages]
            tokens.append(int(np.argmax(logits[-1])))
    return _Reference(logits, tokens[: steps - 1], kept_index)


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


def _picture(config: ProcessorConfig) -> tuple[np.ndarray, np.ndarray | None]:
    """One picture of blocks of colour: pixel_values of its tiles, and DeepSeek-VL2's layout_index."""
    tiles = 2 if isinstance(config, DeepseekVl2ProcessorConfig) else 1
    side = config.tile_size
    blocks = np.random.default_rng(0).uniform(-1, 1, (tiles, 3, 16, 16)).astype(np.float32)
    step = -(-side // 16)
    pixels = np.ascontiguousarray(blocks.repeat(step, axis=2).repeat(step, axis=3)[:, :, :side, :side])
    if not isinstance(config, DeepseekVl2ProcessorConfig):
        return pixels, None
    layout = deepseek_vl2_layout([(1, 1)], config.grid_side, global_view_first=config.global_view_first)
    return pixels, layout


def _run_vision(model: Model, pixels: np.ndarray, layout: np.ndarray | None) -> np.ndarray:
    inputs = {abi.PIXEL_VALUES: torch.from_numpy(pixels)}
    if layout is not None:
        inputs[abi.LAYOUT_INDEX] = torch.from_numpy(layout)
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
