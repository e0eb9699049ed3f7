# SPDX-License-Identifier: Apache-2.0
"""Operators of the CPU in a program of their own (plugins/testing/operators_host)."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastmmoe.exporter.ops import LINEAR, ROTARY, SPARSE_MOE, VISION_ATTENTION
from fastmmoe.exporter.ops.contract import OpSpec
from fastmmoe.runtime.types import Array
from tests.support.attention_params import FLOAT_TYPES
from tests.support.host_program import build_program
from tests.support.linear_params import LinearAttributes
from tests.support.moe_params import MoeAttributes, encoded_attributes, moe_sizes

ISAS = {
    "x86_64": ("baseline", "avx2", "avx512", "avx512_vnni", "avx512_bf16", "amx_bf16"),
    "aarch64": ("baseline", "dotprod"),
}
"""kNames of plugins/common/processor.cpp"""


def _pointers(*names: str) -> list[tuple[str, Any]]:
    return [(name, ctypes.c_void_p) for name in names]


def _sizes(*names: str) -> list[tuple[str, Any]]:
    return [(name, ctypes.c_int64) for name in names]


class _MoeParams(ctypes.Structure):
    """SparseMoeParams of plugins/sparse_moe/cpu/kernel.h"""

    _fields_ = [
        ("attributes", MoeAttributes),
        *_sizes("T", "V", "H", "I", "E", "visual_top_k"),
        *_pointers("hidden_states", "router_logits", "visual_index", "correction_bias"),
        ("weight_type", ctypes.c_int),
        *_pointers("gate_up", "down", "gate_up_scale", "gate_up_zero", "down_scale", "down_zero"),
        *_pointers("gate_up_bias", "down_bias"),
        ("is_exact", ctypes.c_bool),
        *_pointers("output"),
    ]


class _LinearParams(ctypes.Structure):
    """LinearParams of plugins/linear/cpu/kernel.h"""

    _fields_ = [
        ("attributes", LinearAttributes),
        ("is_exact", ctypes.c_bool),
        *_sizes("T", "K", "N"),
        *_pointers("x"),
        ("weight_type", ctypes.c_int),
        *_pointers("weight", "bias", "scale", "zero", "residual", "output"),
    ]


class _VisionParams(ctypes.Structure):
    """VisionAttentionParams of plugins/vision_attention/params.h"""

    _fields_ = [
        ("scale", ctypes.c_float),
        ("compute", ctypes.c_int),
        *_sizes("B", "T", "N", "D"),
        *_pointers("qkv", "output"),
    ]


class _RotaryParams(ctypes.Structure):
    """RotaryParams of plugins/rotary/params.h"""

    _fields_ = [
        ("epsilon", ctypes.c_float),
        *_sizes("T", "N", "P"),
        *_pointers("x", "cos", "sin", "norm", "output"),
    ]


_PARAMS: dict[str, Any] = {
    SPARSE_MOE.name: _MoeParams,
    LINEAR.name: _LinearParams,
    VISION_ATTENTION.name: _VisionParams,
    ROTARY.name: _RotaryParams,
}
"""In the order of the program's enumeration Operator."""


@dataclass(frozen=True)
class Call:
    """Inputs and attributes of a call; exact: with arithmetic in float."""

    spec: OpSpec
    inputs: dict[str, Array]
    attributes: dict[str, Any]
    is_exact: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the output."""
        if self.spec is SPARSE_MOE:
            return self.inputs["hidden_states"].shape
        if self.spec is LINEAR:
            return len(self.inputs["x"]), self.attributes["out_features"]
        if self.spec is ROTARY:
            return self.inputs["x"].shape
        B, T, _, N, D = self.inputs["qkv"].shape
        return B, T, N, D

    def encode(self) -> bytes:
        """As the program reads it."""
        params = _PARAMS[self.spec.name]
        members = {name for name, kind in params._fields_ if kind is ctypes.c_void_p}
        arrays = {name: self.inputs[name] for name, _ in params._fields_ if name in members & self.inputs.keys()}
        values = {name: array.nbytes for name, array in arrays.items()} | {"output": 4 * int(np.prod(self.shape))}
        kind = list(_PARAMS).index(self.spec.name)
        parts = [kind.to_bytes(8, "little"), bytes(params(**self._values(), **values))]
        return b"".join([*parts, *(array.tobytes() for array in arrays.values())])

    def _values(self) -> dict[str, Any]:
        """Of the members that are no arrays."""
        attributes = encoded_attributes(self.spec, self.attributes)
        if self.spec is VISION_ATTENTION:
            B, T, _, N, D = self.inputs["qkv"].shape
            return {**attributes, "B": B, "T": T, "N": N, "D": D}
        if self.spec is ROTARY:
            T, N, width = self.inputs["x"].shape
            return {"epsilon": attributes["epsilon"], "T": T, "N": N, "P": width // 2}
        values: dict[str, Any] = {"is_exact": self.is_exact}
        weights = self.inputs.get("gate_up", self.inputs.get("weight"))
        if weights is not None and weights.dtype in FLOAT_TYPES:
            values["weight_type"] = FLOAT_TYPES.index(weights.dtype)
        if self.spec is LINEAR:
            (T, K), N = self.inputs["x"].shape, self.attributes["out_features"]
            return {**values, "attributes": LinearAttributes(**attributes), "T": T, "K": K, "N": N}
        sizes = moe_sizes(self.inputs)
        sizes["I"] = self.attributes["expert_size"] or sizes["I"]
        values["visual_top_k"] = int(self.inputs["visual_top_k"][0])
        return {**values, "attributes": MoeAttributes(**attributes), **sizes}


class OperatorsHost:
    """A build of the program, and how it is run."""

    def __init__(self, build: Path, settings: list[str]) -> None:
        """settings: of CMake."""
        self.program = build_program("operators_host", build, settings)

    def isas(self) -> list[str]:
        """The instruction sets that are compiled and that this processor has."""
        names = ISAS.get(platform.machine(), ("baseline",))
        return [isa for isa in names if self._run([], isa)[:16].rstrip(b"\0").decode() == isa]

    def __call__(self, calls: Sequence[Call], isa: str, **environment: str) -> list[Array]:
        """The output of each call, which had the same bits with 1, 2 and 4 threads and in two calls at once."""
        found, start, outputs = self._run(calls, isa, **environment), 16, []
        for call in calls:
            count = int(np.prod(call.shape))
            outputs.append(np.frombuffer(found, np.float32, count, start).reshape(call.shape))
            start += 4 * count
        assert start == len(found)
        return outputs

    def _run(self, calls: Sequence[Call], isa: str, **environment: str) -> bytes:
        encoded = b"".join(call.encode() for call in calls)
        settings = {**os.environ, "FASTMMOE_CPU_ISA": isa, **environment}
        done = subprocess.run([self.program], input=encoded, capture_output=True, env=settings, check=False)
        assert done.returncode == 0, f"{isa}: {done.returncode}: {done.stderr.decode()[:6000]}"
        return done.stdout
