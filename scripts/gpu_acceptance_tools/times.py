# SPDX-License-Identifier: Apache-2.0
"""Times of every operator at the sizes of the published models, against what the same run measures at most."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sass_tools.roofline import Weights

from fastmmoe.exporter.ops import ATTENTION
from fastmmoe.runtime.types import Array
from gpu_acceptance_tools.kernels import Kernels
from gpu_acceptance_tools.layer import FORMATS, RandomLayer, Tokens, layers, relative_error
from gpu_acceptance_tools.report import Recorder
from gpu_acceptance_tools.timing import Ceilings, measure_ceilings, median_us
from gpu_acceptance_tools.work import Work
from tests.support.attention_cases import Case, make_inputs
from tests.support.attention_params import make_params, output_types
from tests.support.operators import prune_inputs
from tests.support.prune_params import INPUTS, prune_output_types, prune_params, prune_sizes, with_dtype

TOKENS, TINY_TOKENS = (1, 4, 8, 64, 512, 2048), (1, 4, 9)
REDUCED, TINY_REDUCED = (512, 2048), (9,)
"""Tokens of calls in which some are visual and use fewer experts."""
TEXT = 64
CHECKED, TINY_CHECKED = (8, 512), (1, 9)
"""Tokens of calls that are compared with torch as well."""
TOLERANCE = 2e-3
GROUP = 32
ATTENTION_CASES = (
    Case("InternVL3.5-30B-A3B, prefill", 32, 4, 128, 2048, (0,), ((0, 2048),)),
    Case("InternVL3.5-30B-A3B, decode at 2,048", 32, 4, 128, 2304, (2047,), ((0, 1),)),
    Case("InternVL3.5-30B-A3B, decode at 8,192", 32, 4, 128, 8448, (8191,), ((0, 1),)),
    Case("DeepSeek-VL2-small, prefill", 16, 1, 576, 2048, (0,), ((0, 2048),), value_width=512),
    Case("DeepSeek-VL2-small, decode at 2,048", 16, 1, 576, 2304, (2047,), ((0, 1),), value_width=512),
    Case("DeepSeek-VL2-small, decode at 8,192", 16, 1, 576, 8448, (8191,), ((0, 1),), value_width=512),
)
TINY_ATTENTION = (
    Case("tiny, prefill", 4, 2, 64, 32, (0,), ((0, 20),)),
    Case("tiny latent, decode", 4, 1, 40, 64, (50,), ((0, 1),), value_width=32),
    Case("tiny, decode", 4, 1, 64, 256, (140,), ((0, 1),)),
)


def run(work: Work, record: Recorder) -> None:
    """Ceilings, then FmmSparseMoE by model, format, tokens and visual_top_k; FmmAttention; FmmTokenPrune."""
    device, rehearsal = work.device, work.is_rehearsal
    kernels = Kernels(work.library, device)
    ceilings = record_ceilings(work, record)
    # Experts of the tiny layer are narrower than a group of the real ones.
    formats = [Weights(w.name, w.weight_format, w.bits, min(w.group_size, GROUP)) for w in FORMATS]
    for layer in layers(is_rehearsal=rehearsal):
        for weights in formats if rehearsal else FORMATS:
            made = RandomLayer(layer, weights, device)
            time_moe(work, record, kernels, ceilings, made)
            del made
    for case in work.pick(ATTENTION_CASES, TINY_ATTENTION):
        time_attention(record, kernels, ceilings, case)
    time_prune(work, record, kernels, ceilings)


def record_ceilings(work: Work, record: Recorder) -> Ceilings:
    """Measure them, and write them down."""
    copy_bytes, side = work.pick((2 << 30, 8192), (1 << 20, 64))
    ceilings = measure_ceilings(work.device, copy_bytes=copy_bytes, side=side)
    record.measure("copy", ceilings.gb_per_s, "GB/s", bytes=copy_bytes)
    for dtype, rate in ceilings.tflops.items():
        record.measure("product", rate, "TFLOP/s", type=dtype, side=side)
    return ceilings


def time_moe(work: Work, record: Recorder, kernels: Kernels, ceilings: Ceilings, made: RandomLayer) -> None:
    """A layer's calls."""
    k, label = made.layer.top_k, {"model": made.layer.model, "weights": made.weights.name}
    calls = [(T, 0, k) for T in work.pick(TOKENS, TINY_TOKENS)]
    text = work.pick(TEXT, 2)
    calls += [(T, T - text, top_k) for T in work.pick(REDUCED, TINY_REDUCED) for top_k in sorted({1, k // 2})]
    for T, visual, top_k in calls:
        # Other rows use other experts: few tokens' would stay in the cache.
        sets = [made.tokens(T, seed, visual=visual, visual_top_k=top_k) for seed in range(16 if T <= 8 else 4)]
        output = torch.full_like(sets[0].hidden, torch.nan)
        us = median_us([made.call(kernels, tokens, output) for tokens in sets], made.device)
        record_rates(record, ceilings, "FmmSparseMoE", us, *_mean_work(made, sets), label | {"T": T, "visual": visual})
        record.section.measurements[-1].conditions["visual_top_k"] = top_k
        if T in work.pick(CHECKED, TINY_CHECKED):
            output.fill_(torch.nan)
            made.call(kernels, sets[0], output)()
            error = relative_error(output, made.expected(sets[0]))
            name = f"FmmSparseMoE {made.layer.model} {made.weights.name} T {T} visual {visual} of {top_k}"
            record.check(name, error <= TOLERANCE, error, TOLERANCE)


def _mean_work(made: RandomLayer, sets: list[Tokens]) -> tuple[float, float]:
    each = [made.work(tokens) for tokens in sets]
    return sum(b for b, _ in each) / len(each), sum(f for _, f in each) / len(each)


def record_rates(
    record: Recorder,
    ceilings: Ceilings,
    name: str,
    us: float,
    size: float,
    operations: float,
    conditions: dict[str, Any],
) -> None:
    """A time, and the share of the ceiling that is nearer."""
    by_memory = size / us / 1e3 / ceilings.gb_per_s
    by_products = operations / us / 1e6 / ceilings.tflops["float16"]
    record.measure(
        name,
        us,
        "us",
        max(by_memory, by_products),
        **conditions,
        gb_per_s=size / us / 1e3,
        tflops=operations / us / 1e6,
        bound="memory" if by_memory >= by_products else "products",
    )


def upload(array: Array, device: torch.device) -> torch.Tensor:
    """Its bytes."""
    return torch.from_numpy(np.ascontiguousarray(array).reshape(-1).view(np.uint8).copy()).to(device)


def queued(
    kernels: Kernels,
    operator: str,
    inputs: dict[str, Array],
    outputs: dict[str, Any],
    aliases: dict[str, str],
    params_of: Callable[[dict[str, int]], ctypes.Structure],
) -> tuple[Callable[[], None], dict[str, torch.Tensor]]:
    """Function that queues an operator, and its tensors as bytes."""
    device = kernels.device
    tensors = {name: upload(value, device) for name, value in inputs.items()}
    for name, (shape, dtype) in outputs.items():
        if name in aliases:
            tensors[name] = tensors[aliases[name]]
        else:
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            tensors[name] = torch.full((size,), 0xFF, dtype=torch.uint8, device=device)
    params = params_of({name: tensor.data_ptr() for name, tensor in tensors.items()})
    workspace = torch.empty(kernels.workspace_bytes(operator, params) + 256, dtype=torch.uint8, device=device)
    tensors["workspace"] = workspace
    place = -(-workspace.data_ptr() // 256) * 256

    def queue(keep: dict[str, torch.Tensor] = tensors) -> None:
        kernels.launch(operator, params, place)

    return queue, tensors


def attention_call(kernels: Kernels, case: Case, seed: int = 0) -> tuple[Callable[[], None], dict[str, torch.Tensor]]:
    """Function that queues FmmAttention in float16 with caches in place, and its tensors as bytes."""
    inputs = make_inputs(case, seed, dtype=np.float16)
    outputs = output_types(case, inputs)
    aliases = {t.name: t.alias for t in ATTENTION.outputs if t.name in outputs and t.alias}
    return queued(kernels, "attention", inputs, outputs, aliases, lambda places: make_params(case, inputs, places))


def attention_work(case: Case) -> tuple[float, float]:
    """The fewest bytes and operations of a call of one sequence: rows and their keys and values, each once."""
    (length,), ((_, T),) = case.lengths, case.call
    values = case.value_width or case.width
    pairs = T * length + T * (T + 1) / 2
    row = 2 * case.key_heads * (case.width + (0 if case.value_width else values))
    size = row * (length + 2 * T) + 2 * T * case.heads * (case.width + values)
    return size, 2 * pairs * case.heads * (case.width + values)


def time_attention(record: Recorder, kernels: Kernels, ceilings: Ceilings, case: Case) -> None:
    """A call of FmmAttention; several copies keep short caches out of the cache of the device."""
    calls = [attention_call(kernels, case, seed) for seed in range(4)]
    us = median_us([queue for queue, _ in calls], kernels.device)
    output = calls[0][1]["output"].cpu().numpy().view(np.float16)
    record.check(f"FmmAttention {case.name} is finite", bool(np.isfinite(output).all()), "finite", "finite")
    record_rates(record, ceilings, "FmmAttention", us, *attention_work(case), {"case": case.name})


def prune_call(
    kernels: Kernels, share: float, *, is_tiny: bool
) -> tuple[Callable[[], None], dict[str, torch.Tensor], dict[str, int]]:
    """Function that queues FmmTokenPrune, its tensors as bytes, its sizes: the picture of the published model, 1,792
    visual tokens, of which a share is kept.
    """
    V, H, E = (60, 16, 8) if is_tiny else (1792, 2048, 128)
    K = int(V * share)
    made = prune_inputs(T=V + TEXT, K=K, M=K // 10, visual=np.arange(16, 16 + V), H=H, E=E)
    inputs, sizes = with_dtype(made, np.float16), prune_sizes(made)
    attributes = {"window": 3, "merge": "mlerp"}
    queue, tensors = queued(
        kernels,
        "token_prune",
        {name: inputs[name] for name in INPUTS},
        prune_output_types(sizes, np.float16),
        {},
        lambda places: prune_params(sizes, np.float16, attributes, places),
    )
    return queue, tensors, sizes


def time_prune(work: Work, record: Recorder, kernels: Kernels, ceilings: Ceilings) -> None:
    """FmmTokenPrune, keeping half and a quarter."""
    for share in (0.5, 0.25):
        queue, tensors, sizes = prune_call(kernels, share, is_tiny=work.is_rehearsal)
        us = median_us([queue], kernels.device)
        V, K, H, E = (sizes[letter] for letter in "VKHE")
        kept = tensors["kept_index"].cpu().numpy().view(np.int32)
        ascends = bool((np.diff(kept) > 0).all())
        record.check(
            f"FmmTokenPrune keeps {K} of {V} in order", ascends, "ascending" if ascends else "not", "ascending"
        )
        # Probabilities; each state's row that stays is read and written, or of a window read.
        size = 4 * E * V + 2 * 2 * H * (sizes["T"] + sizes["T"] - V + K)
        record_rates(record, ceilings, "FmmTokenPrune", us, size, 0.0, {"V": V, "K": K, "H": H, "E": E})
