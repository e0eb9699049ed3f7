# SPDX-License-Identifier: Apache-2.0
"""Others on the same layers and rows: torch's grouped product, a fused MoE in Triton, ONNX Runtime, torch's attention.

Each is timed with its routing, as ours is. What cannot run is written down with its reason; that fails nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from sass_tools.roofline import WEIGHTS, Weights

from gpu_acceptance_tools.kernels import Kernels
from gpu_acceptance_tools.layer import RandomLayer, Tokens, layers, relative_error
from gpu_acceptance_tools.report import Recorder
from gpu_acceptance_tools.times import ATTENTION_CASES, GROUP, TINY_ATTENTION, attention_call
from gpu_acceptance_tools.timing import median_us
from gpu_acceptance_tools.work import Work
from tests.support.attention_cases import Case, make_inputs

TOKENS, TINY_TOKENS = (1, 8, 64, 512, 2048), (1, 9)
OURS, PEERS = 2e-3, 2e-2
"""Greatest relative errors: of float16, and of peers that compute in bfloat16."""
Peer = Callable[[RandomLayer, Tokens], torch.Tensor]


def run(work: Work, record: Recorder) -> None:
    """Attention; layers of both models in float16 beside torch and Triton; all formats beside ONNX Runtime, which comes
    last, as a fault in it would end the section.
    """
    from gpu_acceptance_tools.onnx_moe import make_peer

    kernels = Kernels(work.library, work.device)
    for case in work.pick(ATTENTION_CASES, TINY_ATTENTION):
        compare_attention(record, kernels, case)
    for layer in layers(is_rehearsal=work.is_rehearsal):
        made = RandomLayer(layer, WEIGHTS[0], work.device)
        peers: dict[str, Callable[[], Peer]] = {"torch._grouped_mm": functools.partial(grouped_product, made)}
        peers["triton"] = functools.partial(triton_peer, work, made)
        compare_moe(work, record, kernels, made, peers)
    for layer in layers(is_rehearsal=work.is_rehearsal):
        for weights in WEIGHTS:
            group = min(weights.group_size, GROUP) if work.is_rehearsal else weights.group_size
            made = RandomLayer(layer, Weights(weights.name, weights.weight_format, weights.bits, group), work.device)
            peer: Callable[[], Peer] = functools.partial(make_peer, work, made)
            compare_moe(work, record, kernels, made, {"onnxruntime": peer})


def compare_moe(
    work: Work, record: Recorder, kernels: Kernels, made: RandomLayer, peers: Mapping[str, Callable[[], Peer]]
) -> None:
    """One layer, by tokens."""
    ready = {name: peer for name, make in peers.items() if (peer := _try(record, f"{name} {made.weights.name}", make))}
    for T in work.pick(TOKENS, TINY_TOKENS):
        conditions = {"model": made.layer.model, "weights": made.weights.name, "T": T}
        tokens = made.tokens(T, seed=0)
        output, expected = torch.full_like(tokens.hidden, torch.nan), made.expected(tokens)
        queue = made.call(kernels, tokens, output)
        us = median_us([queue], made.device)
        queue()
        error = relative_error(output, expected)
        record.measure("fastmmoe", us, "us", **conditions)
        name = f"fastmmoe {made.layer.model} {made.weights.name} T {T} beside {', '.join(peers)}"
        record.check(name, error <= OURS, error, OURS)
        if made.weights.weight_format != "float":
            # QMoE does, though its attribute says that it does not.
            expected = made.expected(tokens, renormalises=True)
        for name, peer in ready.items():
            _compare(record, name, functools.partial(peer, made, tokens), expected, us, conditions)


def _try(record: Recorder, what: str, function: Callable[[], Any]) -> Any:
    """What the function gives; None where it raises, which is written down: peers are not what is accepted."""
    try:
        return function()
    except Exception as error:  # noqa: BLE001
        record.fact(**{f"{what} not run": f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]})
        return None


def _compare(
    record: Recorder, name: str, call: Callable[[], torch.Tensor], expected: torch.Tensor, ours: float, conditions: Any
) -> None:
    def measure() -> None:
        error = relative_error(call(), expected)
        # ONNX Runtime has a stream of its own, which no capture sees.
        us = median_us([call], expected.device, captures=name != "onnxruntime")
        record.measure(name, us, "us", **conditions, relative_error=error, is_same=error <= PEERS, over_ours=us / ours)

    _try(record, f"{name} {' '.join(map(str, conditions.values()))}", measure)


def sorted_slots(made: RandomLayer, tokens: Tokens) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Slots in the order of their experts [T k], how many each expert has [E], weights [T, k]."""
    experts, weights = made.routing(tokens)
    flat = experts.reshape(-1)
    counts = torch.zeros(made.layer.E, dtype=torch.int64, device=flat.device)
    counts.scatter_add_(0, flat, torch.ones_like(flat))
    return flat.argsort(stable=True), counts, weights


def grouped_product(made: RandomLayer) -> Peer:
    """torch._grouped_mm over slots sorted by expert, in bfloat16, the only type it takes."""
    gate_up, down = (made.tensors[name].bfloat16().transpose(1, 2) for name in ("gate_up", "down"))

    def call(made: RandomLayer, tokens: Tokens) -> torch.Tensor:
        order, counts, weights = sorted_slots(made, tokens)
        ends, rows = counts.cumsum(0).int(), order // made.layer.top_k
        both = torch._grouped_mm(tokens.hidden.bfloat16()[rows], gate_up, offs=ends)
        gate, up = both.chunk(2, 1)
        made_rows = torch._grouped_mm(F.silu(gate) * up, down, offs=ends)
        output = torch.zeros(tokens.hidden.shape, device=made.device)
        return output.index_add_(0, rows, made_rows * weights.reshape(-1)[order, None])

    return call


def block_rows(made: RandomLayer, T: int) -> int:
    """Rows of a block of one expert's slots: about as many as an expert has."""
    mean = T * made.layer.top_k / made.layer.E
    return 16 if mean <= 16 else 64 if mean <= 96 else 128


def blocks_of(made: RandomLayer, tokens: Tokens, rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Slots in blocks [blocks x rows], T k where a block has none left; each block's expert, -1 where it is not used.

    How many blocks there are depends on T alone, so the device is not asked.
    """
    order, counts, weights = sorted_slots(made, tokens)
    used, device = len(order), order.device
    most = -(-used // rows) + min(made.layer.E, used)
    blocks = -(-counts // rows)
    ends, firsts = blocks.cumsum(0), (counts.cumsum(0) - counts)
    number = torch.arange(most, device=device)
    expert = torch.searchsorted(ends, number, right=True).clamp(max=made.layer.E - 1)
    place = (number - (ends - blocks)[expert])[:, None] * rows + torch.arange(rows, device=device)
    is_slot = (place < counts[expert][:, None]) & (number < ends[-1])[:, None]
    slots = order[(firsts[expert][:, None] + place).clamp(max=used - 1)]
    is_used = number < ends[-1]
    return torch.where(is_slot, slots, used).int(), torch.where(is_used, expert, -1).int(), weights


def triton_peer(work: Work, made: RandomLayer) -> Peer:
    """The kernels of triton_moe.py; in a rehearsal without Triton, its blocks with torch."""
    try:
        from gpu_acceptance_tools.triton_moe import launch
    except ImportError:
        if not work.is_rehearsal:
            raise
        launch = blocks_with_torch

    def call(made: RandomLayer, tokens: Tokens) -> torch.Tensor:
        rows = block_rows(made, len(tokens.hidden))
        slots, experts, weights = blocks_of(made, tokens, rows)
        weights = weights.contiguous()
        return launch(tokens.hidden, made.tensors["gate_up"], made.tensors["down"], weights, slots, experts, rows)

    return call


def blocks_with_torch(
    x: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    weights: torch.Tensor,
    slots: torch.Tensor,
    block_experts: torch.Tensor,
    rows: int,
) -> torch.Tensor:
    """What triton_moe.launch computes."""
    k, out = weights.shape[1], torch.zeros(x.shape)
    for block, e in zip(slots.view(-1, rows), block_experts.tolist(), strict=True):
        own = block[block < weights.numel()].long()
        if e >= 0:
            gate, up = (x[own // k].float() @ gate_up[e].float().T).chunk(2, 1)
            made = (F.silu(gate) * up) @ down[e].float().T
            out.index_add_(0, own // k, made * weights.reshape(-1)[own, None])
    return out


def compare_attention(record: Recorder, kernels: Kernels, case: Case) -> None:
    """FmmAttention beside torch's attention over the same rows, which appends nothing to a cache."""
    queue, tensors = attention_call(kernels, case)
    us = median_us([queue], kernels.device)
    inputs = make_inputs(case, 0, dtype="float16")
    rows = {name: torch.from_numpy(inputs[name]).to(kernels.device) for name in inputs}
    (length,), width = case.lengths, case.value_width or case.width
    output = tensors["output"].view(torch.float16).view(-1, case.heads, width)
    query = rows["query"].transpose(0, 1)[None]
    key = torch.cat([rows["past_key"][0, :, :length], rows["key"].transpose(0, 1)], 1)[None]
    if case.value_width:
        value = key[..., : case.value_width]
    else:
        value = torch.cat([rows["past_value"][0, :, :length], rows["value"].transpose(0, 1)], 1)[None]

    def call() -> torch.Tensor:
        is_causal = query.shape[2] > 1
        assert not is_causal or length == 0, "torch's causal mask begins at the first key"
        return F.scaled_dot_product_attention(
            query, key, value, is_causal=is_causal, scale=case.width**-0.5, enable_gqa=True
        )

    exact = call().float()
    error = relative_error(output, exact[0].transpose(0, 1))
    record.measure("fastmmoe attention", us, "us", case=case.name)
    record.check(f"FmmAttention {case.name} as torch's", error <= 2 * OURS, error, 2 * OURS)
    _compare(record, "torch attention", call, exact, us, {"case": case.name})
