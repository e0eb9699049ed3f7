# SPDX-License-Identifier: Apache-2.0
"""How much this machine, or one of a data sheet, computes and reads in a second at most."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fastmmoe.runtime.backends.settings import CPU
from fastmmoe.runtime.bundle.manifest import Manifest
from fastmmoe.runtime.cost.roofline import Rates, decode_work
from fastmmoe.runtime.cost.weights import count_weights, weights_bytes
from fastmmoe.runtime.machines.data_sheet import find_device
from fastmmoe.runtime.machines.devices import Device
from fastmmoe.runtime.machines.gpu import find_gpu
from fastmmoe.runtime.machines.speed import Numbers, peak_flops, read_bandwidth
from fastmmoe.runtime.method.schedule import plan_request

_COUNTS = Rates(1.0, 1.0, "counts alone")


def rates_of(device: Device) -> Rates:
    """Those of its data sheet, in 16 bits: experts of 8 and 4 bits are multiplied in 16, as the kernels do."""
    mode = f", {device.power_mode}" if device.power_mode else ""
    return Rates(1e12 * device.fp16_tflops, 1e9 * device.gb_per_s, f"data sheet{mode}")


def rates_of_cpu(working_set: int, numbers: Numbers) -> Rates:
    """This machine's processor; its memory is measured for a moment.

    Args:
        working_set: bytes that are read again and again; few of them stay in caches.
        numbers: see `peak_flops`.
    """
    source = "cores, width and clock; memory measured"
    return Rates(peak_flops(numbers=numbers), read_bandwidth(working_set), source)


def rates_here(provider: str, manifest: Manifest, root: Path = Path("/")) -> Rates | None:
    """Of what computes a bundle on this machine; None where it is a GPU without an entry in devices.py.

    Args:
        provider: as `Backend.provider` has it.
        root: where proc and sys are.
    """
    if provider == CPU:
        return rates_of_cpu(least_working_set(manifest), shortest_numbers(manifest))
    gpu = find_gpu()
    device = None if gpu is None else find_device(gpu, root)
    return None if device is None else rates_of(device)


def least_working_set(manifest: Manifest) -> int:
    """Bytes of the call that reads the fewest, a step: the fewer, the more of them stay in a processor's caches."""
    info = manifest.language_model
    text = plan_request(manifest.policy, visual_tokens=0, moe_layers=info.moe_layers, top_k=info.top_k)
    return decode_work(manifest, matrix_bytes(manifest), _COUNTS, text, [0] * info.layers).bytes


def shortest_numbers(manifest: Manifest) -> Numbers:
    """The shortest numbers that operators of the CPU may multiply in a bundle."""
    linears = manifest.linears
    formats = {one.weight_format for one in (manifest.experts, linears.dense, linears.head, linears.vision)}
    # Weights of 8-bit floats may be multiplied as something longer, of which this is a bound, too.
    if formats & {"int8", "int4", "fp8"}:
        return "int8"
    is_short = "bf16" in formats or manifest.dtype == "bf16" or manifest.cache_dtype == "bfloat16"
    return "bfloat16" if is_short else "float32"


def matrix_bytes(manifest: Manifest) -> Mapping[str, int]:
    """Bytes of a bundle's matrices by part, for `roofline`; a manifest does not tell of norms and biases."""
    return weights_bytes(manifest, count_weights(manifest.language_model, manifest.vision, {}))
