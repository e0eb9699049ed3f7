# SPDX-License-Identifier: Apache-2.0
"""The backend of ONNX Runtime's CUDA provider without a GPU: an engine target's bundle as its float32 twin.

The CPU's memory takes the place of the device's. Bindings, copies by address and experts as inputs are those of a GPU.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import onnx
import onnxruntime as ort
from device_double.twin import make_twin

from fastmmoe.runtime.backends.native import register_native_ops
from fastmmoe.runtime.backends.onnxruntime_cuda import CudaOnnxRuntime
from fastmmoe.runtime.bundle.manifest import GRAPHS, Manifest, graph_file, read_manifest, weights_file


class TwinRuntime(CudaOnnxRuntime):
    """The backend over the CPU provider and the CPU's operators."""

    DEVICE: ClassVar[str] = "cpu"
    PROVIDERS: ClassVar[list[Any]] = ["CPUExecutionProvider"]

    def _register(self, options: ort.SessionOptions) -> None:
        register_native_ops(options, self.manifest.ops)


def write_twin(bundle: Path, directory: Path) -> Manifest:
    """Write the float32 twins of a bundle's graphs, which take the experts' weights as the bundle stores them.

    Args:
        bundle: of an engine target, with float experts.
    Returns:
        What a manifest of them says.
    """
    manifest = read_manifest(bundle)
    directory.mkdir()
    for graph in GRAPHS:
        twin = make_twin(onnx.load(bundle / graph_file(graph))).model
        _cast_experts(twin.graph, manifest)
        onnx.save(twin, directory / graph_file(graph))
    weights = weights_file("language_model")
    shutil.copyfile(bundle / weights, directory / weights)
    experts = msgspec.structs.replace(manifest.experts, weight_format="float", group_size=0, zero_points=False)
    files = {weights: manifest.files[weights]}
    return msgspec.structs.replace(
        manifest, activation_dtype="float32", cache_dtype="float32", experts=experts, files=files
    )


def _cast_experts(graph: onnx.GraphProto, manifest: Manifest) -> None:
    """The experts' inputs have their own type; what reads them gets float32."""
    inputs = {value.name: value for value in graph.input}
    casts = []
    for name, tensor in manifest.experts.inputs.items() if inputs.keys() >= manifest.experts.inputs.keys() else ():
        inputs[name].type.tensor_type.elem_type = onnx.TensorProto.DataType.Value(tensor.dtype.upper())
        for node in graph.node:
            for place, given in enumerate(node.input):
                if given == name:
                    node.input[place] = f"{name}.float32"
        casts.append(onnx.helper.make_node("Cast", [name], [f"{name}.float32"], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
