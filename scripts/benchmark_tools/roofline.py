# SPDX-License-Identifier: Apache-2.0
"""The least time of a prefill on a machine: layer by layer, the greater of computing and of reading the weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmark_tools.machine import Machine
from fastmmoe.runtime.bundle.manifest import LanguageModelInfo, Manifest
from fastmmoe.runtime.cost.flops import PrefillFlops, count_layers, count_prefill
from fastmmoe.runtime.cost.weights import expert_weights, projection_weights
from fastmmoe.runtime.method.schedule import Schedule

EXPERT_BYTES = {"fp32": 4, "bf16": 2}
"""Bytes of a weight of an expert in a CPU bundle, by the bundle's dtype; all other weights are float32."""
OTHER_BYTES = 4


@dataclass(frozen=True)
class Bound:
    """Milliseconds, summed over the layers and the head: of computing alone, of reading the weights alone, and of the
    greater of the two."""

    compute_ms: float
    memory_ms: float
    ms: float


def bound(
    machine: Machine, manifest: Manifest, schedule: Schedule, tokens: int, experts_used: Sequence[int]
) -> tuple[PrefillFlops, Bound]:
    """The counted FLOPs of a prefill and the least time it can take.

    Args:
        tokens: T of the prompt.
        experts_used: of every layer; only their weights have to be read.
    """
    info = manifest.language_model
    whole = count_prefill(info, manifest.policy, schedule, tokens)
    flops = [layer.total for layer in count_layers(info, manifest.policy, schedule, tokens)] + [whole.head]
    weights = [_layer_bytes(info, EXPERT_BYTES[manifest.dtype], used) for used in experts_used]
    weights.append(info.hidden_size * info.vocab_size * OTHER_BYTES)
    compute = [n / machine.gflops / 1e6 for n in flops]
    memory = [n / machine.bandwidth / 1e6 for n in weights]
    greater = sum(max(pair) for pair in zip(compute, memory, strict=True))
    return whole, Bound(sum(compute), sum(memory), greater)


def balance_tokens(machine: Machine, manifest: Manifest) -> int:
    """Tokens of a layer, all experts used, whose products take as long as reading its weights; without attention."""
    info = manifest.language_model
    seconds = _layer_bytes(info, EXPERT_BYTES[manifest.dtype], info.num_experts) / machine.bandwidth / 1e9
    used_weights = _other_weights(info) + info.top_k * expert_weights(info)
    return round(seconds * machine.gflops * 1e9 / (2 * used_weights))


def _layer_bytes(info: LanguageModelInfo, expert_bytes: int, experts_used: int) -> int:
    return _other_weights(info) * OTHER_BYTES + experts_used * expert_weights(info) * expert_bytes


def _other_weights(info: LanguageModelInfo) -> int:
    """Weights of attention and the router; no shared experts."""
    return projection_weights(info) + info.hidden_size * info.num_experts
