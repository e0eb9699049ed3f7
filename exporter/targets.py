# SPDX-License-Identifier: Apache-2.0
"""What the exporter alone knows of targets and element types; the targets are in runtime/machines/targets.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastmmoe.exporter.config import ExportConfig
from fastmmoe.runtime.errors import InvalidRequest, UnsupportedModel
from fastmmoe.runtime.machines.targets import Target

if TYPE_CHECKING:
    from fastmmoe.exporter.ops.quantise import Packing

DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
"""What the user says -> torch's and NumPy's name (this file stays importable without torch)."""

ATOL = 1e-4
"""Greatest difference from torch: what the check runs computes in float32, whatever is stored."""

MOST_EXPERTS = 256
COLUMNS_MULTIPLE = {"float": 16, "int8": 16, "int4": 32}
"""What the CUDA kernels of FmmSparseMoE take: H and I by weight format (plugins/sparse_moe/kernel.h)."""

_NO_ENGINE_RUNTIME = "This version does not run engines; to try the model here, export with --target cpu"
NEXT_STEP = {
    "cpu": "run it: fastmmoe run {out} --image a.png --prompt '...'",
    "jetson-orin": "copy {out} to the Jetson and build its engines there: fastmmoe build {out}. " + _NO_ENGINE_RUNTIME,
    "rtx": "the engines are there; to build them with other limits: fastmmoe build {out}. " + _NO_ENGINE_RUNTIME,
}
"""Printed after the export, by target: what the user can do now. out: quoted for a shell."""


def choose_dtype(target: Target, dtype: str | None) -> str:
    """The given dtype, or the target's default for None.

    Raises:
        InvalidRequest: the target's kernels do not take it.
    """
    if dtype is not None and dtype not in target.dtypes:
        raise InvalidRequest(f"--dtype {dtype}: target {target.name} takes {', '.join(target.dtypes)}")
    return target.dtypes[0] if dtype is None else dtype


def activation_dtype(target: Target, dtype: str) -> str:
    """Element type of the graphs' activations and of all weights but the experts', a value of `DTYPES`."""
    return DTYPES[dtype] if target.tensorrt is not None else "float32"


def choose_packing(target: Target, config: ExportConfig) -> Packing | None:
    """How the experts are packed; None = they are not.

    Raises:
        InvalidRequest: the target runs floating-point experts only, or zero_points without integers.
    """
    if config.experts == "float":
        if config.zero_points:
            raise InvalidRequest("--zero-points: needs --experts int8 or int4")
        return None
    if target.tensorrt is None:
        raise InvalidRequest(f"--experts {config.experts}: target {target.name} runs floating-point experts only")
    from fastmmoe.exporter.ops.quantise import Packing

    return Packing(config.experts, config.group_size, config.zero_points)


def check_kernels(target: Target, config: Any, packing: Packing | None) -> None:
    """Refuse a model that the target's kernels cannot run.

    Raises:
        UnsupportedModel: too many experts, or a hidden size of the wrong multiple.
    """
    if target.tensorrt is None:
        return
    if config.moe.num_experts > MOST_EXPERTS:
        raise UnsupportedModel(
            f"{config.moe.num_experts} experts: the kernels of target {target.name} take at most {MOST_EXPERTS}"
        )
    weight_format = "float" if packing is None else packing.weight_format
    multiple = COLUMNS_MULTIPLE[weight_format]
    for name, size in (("hidden_size", config.hidden_size), ("expert hidden size", config.moe.intermediate_size)):
        if size % multiple:
            raise UnsupportedModel(
                f"{name} {size}: the kernels of target {target.name} take multiples of {multiple} for {weight_format} "
                "experts"
            )
