# SPDX-License-Identifier: Apache-2.0
"""The decoder with the prune sites of its methods: one graph for prefill and decode, several sequences at once.

A layer with a prune site runs its attention on the rows as they came. At a site "moe" its MoE block and everything
after run on the pruned rows, at a site "output" everything after the layer does. So the layers fall into groups: group
g holds the layers after the g-th layer with a site, up to and including the next. All layers of a group have caches of
one length.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from fastmmoe.exporter.models.decoder_steps import (
    COS,
    PAST_LENGTHS,
    PAST_POSITION_IDS,
    PRESENT_LENGTHS,
    PRESENT_POSITION_IDS,
    PROMPT_OFFSETS,
    PROMPT_POSITIONS,
    RATER_WEIGHTS,
    ROTARY_POSITIONS,
    SIN,
    AttentionStep,
    EveryRow,
    FeedForward,
    GroupTokens,
    NextTokens,
    RandomScores,
    RaterWeights,
    past,
    present,
)
from fastmmoe.exporter.models.layers import SparseMoe
from fastmmoe.exporter.models.steps import Part, Program, Step, Take, Tensors
from fastmmoe.exporter.pruning.sites import (
    HIDDEN_STATES,
    KEEP_OFFSETS,
    KEEP_SLOTS,
    KEPT_INDEX,
    LAST,
    MERGE_OFFSETS,
    MERGE_SLOTS,
    RANDOM_SCORES,
    RATERS,
    RECYCLE_SLOTS,
    RESIDUAL,
    PruneSite,
    own_inputs,
    watch_names,
    watched,
)
from fastmmoe.runtime.bundle import graph_io, signatures
from fastmmoe.runtime.method.policy import ALL, FASTMMOE, RANDOM, SPARSEVLM, UNMODIFIED, Policy

HEAD = "head"
"""Name of the last step."""


class DecoderLayer(nn.Module):
    """Pre-norm layer. `self_attn` and `mlp` are the family's; `mlp` is a dense Mlp or a MoeBlock."""

    self_attn: Any
    mlp: Any

    def __init__(
        self, self_attn: nn.Module, mlp: nn.Module, input_layernorm: nn.Module, post_attention_layernorm: nn.Module
    ) -> None:
        super().__init__()
        self.self_attn, self.mlp = self_attn, mlp
        self.input_layernorm, self.post_attention_layernorm = input_layernorm, post_attention_layernorm


class MoeBlock(nn.Module):
    """Routed experts, plus a shared expert where the family has one."""

    def __init__(self, experts: SparseMoe, shared_experts: nn.Module | None = None) -> None:
        super().__init__()
        self.experts, self.has_shared = experts, shared_experts is not None
        if shared_experts is not None:
            self.shared_experts = shared_experts

    def forward(self, x: torch.Tensor, visual_index: torch.Tensor, visual_top_k: torch.Tensor) -> torch.Tensor:
        y = self.experts(x, visual_index, visual_top_k)
        return y + self.shared_experts(x) if self.has_shared else y


class LanguageModel(nn.Module):
    """Decoder layers, final norm and head of either family, with `policy` built in.

    Args:
        rotary_dim: rotated dimensions of a head; `inv_freq` [rotary_dim / 2] is filled like a weight. rope_scale
            multiplies cos and sin (YaRN's attention factor).
    """

    def __init__(
        self,
        layers: list[DecoderLayer],
        norm: nn.Module,
        lm_head: nn.Linear,
        rotary_dim: int,
        policy: Policy,
        *,
        rope_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.layers: Any = nn.ModuleList(layers)
        self.norm, self.lm_head = norm, lm_head
        self.inv_freq = nn.Parameter(torch.empty(rotary_dim // 2))
        self.policy, self.rope_scale = policy, rope_scale
        self.groups = signatures.layer_groups(len(layers), policy.sites)
        self.moe_layers = tuple(i for i, layer in enumerate(layers) if isinstance(layer.mlp, MoeBlock))

    def forward(self, inputs: Tensors) -> Tensors:
        """One prefill or one decode step; names and shapes of inputs and outputs: runtime/bundle/graph_io.py."""
        return self.program().run(inputs)

    def program(self, cache_dtype: torch.dtype | None = None, *, every_row: bool = False) -> Program:
        """The model as steps, with its parameters as they are now.

        Args:
            cache_dtype: what the caches store; None = the activations' type.
            every_row: the only result is LOGITS of every row that is left after the last layer, [T', vocab].
        """
        return _Builder(self, cache_dtype).build(every_row=every_row)


class _Builder:
    """Lines up the steps of a decoder. `_now` has, for each local name, the program's name of its value by now."""

    def __init__(self, model: LanguageModel, cache_dtype: torch.dtype | None) -> None:
        self._model, self._policy = model, model.policy
        self._steps: list[Step] = []
        self._outputs: dict[str, str] = {}
        self._takes = _takes(model, cache_dtype)
        self._now = {RESIDUAL: graph_io.INPUTS_EMBEDS}

    def build(self, *, every_row: bool) -> Program:
        norm, lm_head = self._model.norm, self._model.lm_head
        self._start()
        for g, layers in enumerate(self._model.groups):
            self._group(g, layers)
        if every_row:
            outputs = {graph_io.LOGITS: graph_io.LOGITS}
            self._add(HEAD, EveryRow(norm, lm_head), [RESIDUAL], [], outputs)
            return Program(self._steps, outputs)
        given = {PROMPT_POSITIONS: graph_io.POSITION_IDS, PROMPT_OFFSETS: graph_io.SEQUENCE_OFFSETS}
        outputs = {name: name for name in (graph_io.LOGITS, graph_io.NEXT_IDS, graph_io.NEXT_POSITION_IDS)}
        taken = [RESIDUAL, graph_io.SEQUENCE_OFFSETS]
        self._add(HEAD, NextTokens(norm, lm_head), taken, [], outputs, given)
        return Program(self._steps, outputs | self._outputs)

    def _add(
        self,
        name: str,
        module: nn.Module,
        takes: Iterable[str],
        writes: Iterable[str],
        results: dict[str, str] | None = None,
        given: Mapping[str, str | Part] | None = None,
    ) -> None:
        """Add a step.

        Args:
            takes: what it reads as it is by now.
            writes: what it changes for the steps after it.
            results: what it gives to the outside, local name -> the graph's.
            given: what it reads by another name, local name -> the program's.
        """
        reads = {local: self._now.get(local, local) for local in takes} | dict(given or {})
        changed = {local: f"{local}@{len(self._steps)}" for local in writes}
        shapes = {local: self._takes[local] for local in reads}
        self._steps.append(Step(name, module, shapes, reads, changed | (results or {})))
        self._now |= changed
        self._outputs |= {} if results is None else {output: output for output in results.values()}

    def _start(self) -> None:
        """What is known before the first layer."""
        if RANDOM in self._policy.methods:
            given = [graph_io.RANDOM_SCORES, graph_io.VISUAL_INDEX, graph_io.POSITION_IDS]
            self._add("random_scores", RandomScores(), given, [RANDOM_SCORES])
        if SPARSEVLM in self._policy.methods:
            given = [graph_io.INPUTS_EMBEDS, graph_io.VISUAL_INDEX, graph_io.RATER_SLOTS]
            self._add("rater_weights", RaterWeights(), given, [RATER_WEIGHTS])

    def _group(self, g: int, layers: tuple[int, ...]) -> None:
        m, policy, slides = self._model, self._policy, [i for i in layers if self._model.layers[i].self_attn.window]
        self._now |= {PAST_LENGTHS: graph_io.past_lengths(g), PAST_POSITION_IDS: graph_io.past_position_ids(g)}
        self._now |= {ROTARY_POSITIONS: self._now.get(graph_io.POSITION_IDS, graph_io.POSITION_IDS)}
        renumbers = g > 0 and SPARSEVLM in policy.methods and policy.sparsevlm_positions != "original"
        module = GroupTokens(m.inv_freq, m.lm_head.weight.dtype, m.rope_scale, policy.method, renumbers=renumbers)
        takes = [graph_io.POSITION_IDS, graph_io.SEQUENCE_IDS, PAST_LENGTHS]
        takes += [graph_io.SEQUENCE_OFFSETS] * renumbers + [graph_io.METHOD] * (renumbers and policy.method == ALL)
        lengths = {PRESENT_LENGTHS: graph_io.present_name(graph_io.past_lengths(g))}
        self._add(f"groups.{g}", module, takes, [COS, SIN, *[ROTARY_POSITIONS] * renumbers], lengths)
        for i in layers:
            self._attention(i, g, is_first_sliding=slides[:1] == [i])
            self._prune(i, "moe")
            self._feed_forward(i)
            self._prune(i, "output")

    def _attention(self, i: int, g: int, *, is_first_sliding: bool) -> None:
        layer, watches = self._model.layers[i], watch_names(self._policy, i)
        attention = layer.self_attn
        module = AttentionStep(layer, watches, writes_positions=is_first_sliding)
        takes = [RESIDUAL, COS, SIN, PAST_LENGTHS, graph_io.SEQUENCE_IDS, graph_io.SEQUENCE_OFFSETS]
        takes += [ROTARY_POSITIONS, PAST_POSITION_IDS] if attention.window else []
        takes += [graph_io.RATER_SLOTS, RATER_WEIGHTS] if RATERS in watches else []
        names = dict(zip(attention.cache_parts, graph_io.past_names(i, attention.cache_parts), strict=True))
        given = {past(part): name for part, name in names.items()}
        results = {present(part): graph_io.present_name(name) for part, name in names.items()}
        if is_first_sliding:
            results[PRESENT_POSITION_IDS] = graph_io.present_name(graph_io.past_position_ids(g))
        writes = [RESIDUAL, HIDDEN_STATES, *map(watched, watches)]
        self._add(f"layers.{i}", module, takes, writes, results, given)
        if is_first_sliding:
            self._now[PAST_POSITION_IDS] = results[PRESENT_POSITION_IDS]

    def _feed_forward(self, i: int) -> None:
        is_moe, prunes = i in self._model.moe_layers, self._policy.method != UNMODIFIED
        module = FeedForward(self._model.layers[i].mlp, is_moe=is_moe, prunes=prunes)
        takes = [RESIDUAL, HIDDEN_STATES, *[graph_io.VISUAL_INDEX] * is_moe]
        given = {graph_io.VISUAL_TOP_K: Part(graph_io.VISUAL_TOP_K, self._model.moe_layers.index(i))} if is_moe else {}
        self._add(f"layers.{i}", module, takes, [RESIDUAL], given=given if prunes else {})

    def _prune(self, i: int, point: str) -> None:
        """The layer's sites at this point."""
        policy, mlp, watches = self._policy, self._model.layers[i].mlp, watch_names(self._policy, i)
        for s, site in enumerate(policy.sites):
            if (site.layer, site.point) != (i, point):
                continue
            states = [RESIDUAL, *[HIDDEN_STATES] * (point == "moe")]
            scores = [*map(watched, watches), *[RANDOM_SCORES] * (RANDOM in policy.methods)]
            rows = [graph_io.POSITION_IDS, graph_io.SEQUENCE_IDS, graph_io.SEQUENCE_OFFSETS, graph_io.VISUAL_INDEX]
            others = [graph_io.VISUAL_OFFSETS, *[graph_io.METHOD] * (policy.method == ALL)]
            own = own_inputs(site, s)
            module = PruneSite(policy, site, watches, mlp.experts if FASTMMOE in site.methods else None)
            self._add(
                f"layers.{i}.token_prune",
                module,
                [*states, *scores, *rows, *others],
                [*states, *scores, *rows],
                {KEPT_INDEX: graph_io.kept_index(s)},
                own | {graph_io.ALPHA: Part(graph_io.ALPHA, s)},
            )
            self._now[graph_io.VISUAL_OFFSETS] = own[KEEP_OFFSETS]


def _takes(model: LanguageModel, cache_dtype: torch.dtype | None) -> dict[str, Take]:
    """Shape and dtype of everything that a step of the decoder reads, by local name.

    T rows, of them V visual tokens, of offsets - 1 sequences; caches of B sequences with room for C rows.
    """
    dtype, H, angles = model.lm_head.weight.dtype, model.lm_head.in_features, model.inv_freq.shape[0]
    attention, int32, int8, float32 = model.layers[0].self_attn, torch.int32, torch.int8, torch.float32
    heads, width = attention.cache_shape
    alike: list[tuple[Take, tuple[str, ...]]] = [
        ((("T", H), dtype), (graph_io.INPUTS_EMBEDS, RESIDUAL, HIDDEN_STATES)),
        ((("T", 1, angles), dtype), (COS, SIN)),
        ((("T",), int32), (graph_io.POSITION_IDS, graph_io.SEQUENCE_IDS, ROTARY_POSITIONS)),
        ((("T",), float32), (RANDOM_SCORES, watched(LAST), watched(RATERS))),
        ((("V",), int32), (graph_io.VISUAL_INDEX,)),
        ((("V",), float32), (graph_io.RANDOM_SCORES,)),
        (((graph_io.OFFSETS,), int32), (graph_io.SEQUENCE_OFFSETS, graph_io.VISUAL_OFFSETS, PROMPT_OFFSETS)),
        (((graph_io.OFFSETS,), int32), (KEEP_OFFSETS, MERGE_OFFSETS)),
        ((("K",), int8), (KEEP_SLOTS,)),
        ((("M",), int8), (MERGE_SLOTS,)),
        ((("N",), int8), (RECYCLE_SLOTS,)),
        ((("Q",), int8), (graph_io.RATER_SLOTS,)),
        ((("Q",), float32), (RATER_WEIGHTS,)),
        (((1,), int32), (graph_io.METHOD, graph_io.VISUAL_TOP_K)),
        (((1,), float32), (graph_io.ALPHA,)),
        # Of the call, before any row was pruned.
        ((("T0",), int32), (PROMPT_POSITIONS,)),
        ((("B",), int32), (PAST_LENGTHS,)),
        ((("B", "C"), int32), (PAST_POSITION_IDS,)),
        ((("B", heads, "C", width), cache_dtype or dtype), tuple(map(past, attention.cache_parts))),
    ]
    return {name: take for take, names in alike for name in names}
