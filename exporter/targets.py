# SPDX-License-Identifier: Apache-2.0
"""What a bundle can be made for. A new target is one entry of `TARGETS`."""

from __future__ import annotations

from dataclasses import dataclass

DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
"""What the user says -> torch's and NumPy's name (this file stays importable without torch)."""

DEFAULT_ATOL = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 1e-1}


@dataclass(frozen=True)
class Target:
    """One kind of machine.

    Attributes:
        default_dtype: key of `DTYPES`.
        computes_in_float32: a 16-bit dtype is then a storage type of expert weights, and every graph boundary and
            every other weight is float32 (ONNX Runtime's CPU provider computes no bfloat16).
        next_step: what the user still has to do or wait for, printed after the export.
    """

    name: str
    default_dtype: str
    computes_in_float32: bool
    next_step: str

    def activation_dtype(self, dtype: str) -> str:
        """Element type of the graphs' activations and of all weights but the experts', a value of `DTYPES`."""
        return "float32" if self.computes_in_float32 else DTYPES[dtype]


TARGETS = {
    target.name: target
    for target in (
        Target("cpu", "fp32", True, "run it: fastmmoe run {out} --image a.png --prompt '...'"),
        Target(
            "jetson-orin",
            "fp16",
            False,
            "this bundle holds the graphs and weights for TensorRT. The TensorRT plugin and the on-device engine build "
            "are not part of this version; to try the model here, export with --target cpu",
        ),
    )
}
