# SPDX-License-Identifier: Apache-2.0
"""Whether a loaded graph is the one that the manifest describes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastmmoe.runtime.bundle import MANIFEST, Manifest, weights_file
from fastmmoe.runtime.errors import BundleMismatch
from fastmmoe.runtime.onnx_file import weight_files
from fastmmoe.runtime.signatures import Signature, Tensor

if TYPE_CHECKING:
    import onnxruntime

TYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(bfloat16)": "bfloat16",
    "tensor(int8)": "int8",
    "tensor(int32)": "int32",
}
"""ONNX Runtime's names of element types -> NumPy's."""


def check_weight_files(path: Path, graph: str, manifest: Manifest) -> None:
    """Raise BundleMismatch where the graph in this file takes weights from a file that is not its own."""
    own = {weights_file(graph)} & manifest.files.keys()
    for name in sorted(weight_files(path) - own):
        raise BundleMismatch(
            f"{path}: has weights in {name!r}, expected {weights_file(graph)}, as listed in {MANIFEST}; copy the whole "
            f"bundle or export again"
        )


def check_fit(path: Path, session: onnxruntime.InferenceSession, signature: Signature) -> None:
    """Raise BundleMismatch unless the graph in this file takes and gives what the manifest's numbers ask for."""
    sides = (("input", session.get_inputs(), signature.inputs), ("output", session.get_outputs(), signature.outputs))
    for side, found, expected in sides:
        for difference in _differences(side, [_tensor(one) for one in found], expected):
            raise BundleMismatch(
                f"{path}: {difference}, by {MANIFEST}: the graph is of another export or model; copy the whole "
                f"bundle or export again"
            )


def _tensor(argument: Any) -> Tensor:
    shape = tuple(size if isinstance(size, int) else "" for size in argument.shape)
    return Tensor(argument.name, shape, TYPES.get(argument.type, argument.type))


def _differences(side: str, found: Sequence[Tensor], expected: Sequence[Tensor]) -> Iterator[str]:
    by_name = {tensor.name: tensor for tensor in found}
    names = {tensor.name for tensor in expected}
    for name in sorted(by_name.keys() - names):
        yield f"has an {side} {name}, which is not expected"
    for tensor in expected:
        if tensor.name not in by_name:
            yield f"has no {side} {tensor.name}, which is expected"
            continue
        _, shape, dtype = by_name[tensor.name]
        if (dtype, shape) != (tensor.dtype, tuple("" if isinstance(size, str) else size for size in tensor.shape)):
            yield f"{side} {tensor.name} is {dtype} {_shown(shape)}, expected {tensor.dtype} {_shown(tensor.shape)}"


def _shown(shape: Sequence[int | str]) -> str:
    return f"[{', '.join('any' if isinstance(size, str) else str(size) for size in shape)}]"
