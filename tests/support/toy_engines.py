# SPDX-License-Identifier: Apache-2.0
"""A bundle with engines of the device's double, from graphs of a few nodes that have a toy manifest's signatures.

A token v is followed by (v + STEP) % 10, in every sequence. The experts' values are added to every logit. A picture's
features are its layout index and the mean of its tiles.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import onnx
from onnx import helper, numpy_helper

from fastmmoe import __version__
from fastmmoe.runtime.backends.tensorrt.device import Device, Stream
from fastmmoe.runtime.backends.tensorrt.loading import load_engines
from fastmmoe.runtime.backends.tensorrt.memory import host_view
from fastmmoe.runtime.backends.tensorrt.profiles import engine_profiles
from fastmmoe.runtime.bundle import graph_io, signatures
from fastmmoe.runtime.bundle.manifest import (
    ENGINES,
    FORMAT,
    GRAPHS,
    MANIFEST,
    PLUGIN,
    Engines,
    Limits,
    Manifest,
    engine_file,
    file_entry,
    weights_file,
    write_manifest,
)
from fastmmoe.runtime.types import Array
from tests.support.double import Modules
from tests.support.manifests import FILES, manifest_document, toy_manifest

STEP = 3
LIMITS = Limits(max_tokens=24, max_visual=12, max_cache=64, max_tiles=2, max_batch=2)
SM = 89
GATE_UP, DOWN = "layers.1.mlp.experts.gate_up", "layers.1.mlp.experts.down"
EXPERTS = {
    GATE_UP: {"dtype": "float16", "shape": [2, 3, 4], "offset": 64},
    DOWN: {"dtype": "int8", "shape": [2, 4, 3], "offset": 16},
}
EXPERT_VALUES: dict[str, Array] = {
    GATE_UP: np.arange(24, dtype=np.float16).reshape(2, 3, 4) / 4,
    DOWN: np.arange(-12, 12, dtype=np.int8).reshape(2, 4, 3),
}
EXPERT_SUM = 57.0
"""What they add to a logit."""


class Gpu(NamedTuple):
    """The double's device by its functions, and a stream."""

    device: Device
    stream: Stream
    modules: Modules

    def read(self, address: int, size: int) -> Array:
        """Bytes of the device, uint8 [size], once what is queued has run."""
        pinned = self.device.allocate_pinned(size)
        self.device.copy(pinned, address, size, self.stream)
        self.device.synchronize(self.stream)
        found = host_view(pinned, size).copy()
        self.device.free_pinned(pinned)
        return found

    def write(self, address: int, values: Array) -> None:
        """Have the device hold these bytes."""
        pinned = self.device.allocate_pinned(values.nbytes)
        host_view(pinned, values.nbytes)[:] = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        self.device.copy(address, pinned, values.nbytes, self.stream)
        self.device.synchronize(self.stream)
        self.device.free_pinned(pinned)

    def live_bytes(self) -> tuple[int, int]:
        """On the device, and pinned."""
        device, pinned = self.modules.control.live()
        return device.bytes, pinned.bytes


def gpu_of(modules: Modules) -> Gpu:
    """The device of these modules, and its stream of high priority."""
    device = Device(modules.cudart)
    return Gpu(device, device.make_streams()[0], modules)


def engine_manifest(**changes: Any) -> Manifest:
    """A toy manifest for target rtx."""
    document = manifest_document("deepseek_vl2")
    entries = {name: entry for name, entry in document["files"].items() if "portable" not in name}
    for name in (PLUGIN, weights_file("language_model")):
        entries[name] = {"bytes": 256, "sha256": "0" * 64}
    return toy_manifest(
        "deepseek_vl2",
        **{
            "target": "rtx",
            "dtype": "fp16",
            "activation_dtype": "float16",
            "cache_dtype": "float16",
            "portable": False,
            "plugin": {"version": __version__, "architecture": "x86_64"},
            "experts": document["experts"] | {"inputs": EXPERTS},
            "files": entries,
        }
        | changes,
    )


def write_engine_bundle(directory: Path, trt: Any, **changes: Any) -> Manifest:
    """A new directory with a bundle for target rtx and its engines; its ONNX graphs are none."""
    directory.mkdir()
    manifest = engine_manifest(**changes)
    for name in FILES:
        if "portable" not in name:
            (directory / name).write_text(name)
    # An ELF header for x86_64.
    (directory / PLUGIN).write_bytes(b"\x7fELF" + bytes(14) + b"\x3e\0" + bytes(236))
    weights = bytearray(256)
    for name, tensor in manifest.experts.inputs.items():
        weights[tensor.offset : tensor.offset + tensor.bytes] = EXPERT_VALUES[name].tobytes()
    (directory / weights_file("language_model")).write_bytes(weights)
    write_manifest(directory, manifest)
    for graph in GRAPHS:
        (directory / engine_file(graph)).write_bytes(engine_bytes(trt, manifest, graph))
    write_engines(directory, trt)
    return manifest


def write_engines(directory: Path, trt: Any, **changes: Any) -> None:
    """engines.json of the engines that are there."""
    engines = Engines(
        format=FORMAT,
        fastmmoe_version=__version__,
        plugin_version=__version__,
        bundle_sha256=file_entry(directory / MANIFEST).sha256,
        module=trt.__name__,
        tensorrt_version=trt.__version__,
        device=None,
        compute_capabilities=(SM,),
        limits=LIMITS,
        files={engine_file(graph): file_entry(directory / engine_file(graph)) for graph in GRAPHS},
        seconds={engine_file(graph): 1.0 for graph in GRAPHS},
    )
    (directory / ENGINES).write_bytes(msgspec.json.encode(msgspec.structs.replace(engines, **changes)))


def load_toy(directory: Path, modules: Modules, **changes: Any) -> Any:
    """The backend of a new bundle."""
    return load_engines(directory, write_engine_bundle(directory, modules.trt, **changes))


def engine_bytes(trt: Any, manifest: Manifest, graph: str, aliases: dict[str, str] | None = None) -> bytes:
    """An engine file; aliases: None = those of the contract."""
    from device_double.engine_file import EngineFile

    if aliases is None:
        aliases = cache_aliases(manifest) if graph == "language_model" else {}
    model = graph_model(manifest, graph).SerializeToString()
    profiles = engine_profiles(manifest, LIMITS)[graph]
    return EngineFile(trt.__name__, trt.__version__, (SM,), profiles, aliases, (), model).encode()


def cache_aliases(manifest: Manifest) -> dict[str, str]:
    """Output -> input of the same address."""
    info, policy, dtype = manifest.language_model, manifest.policy, manifest.cache_dtype
    return {graph_io.present_name(t.name): t.name for t in signatures.cache_inputs(info, policy, dtype)}


def graph_model(manifest: Manifest, graph: str) -> onnx.ModelProto:
    """One of the graphs, weights within."""
    signature = signatures.signatures(manifest)[graph]
    shapes = {tensor.name: tensor.shape for tensor in signature.inputs}
    nodes, arrays, sizes = {"vision": _vision, "embedding": _embedding, "language_model": _language_model}[graph](
        manifest
    )
    sizes |= {graph_io.present_name(name): shape for name, shape in shapes.items() if name.startswith("past_")}
    outputs = [tensor._replace(shape=sizes[tensor.name]) for tensor in signature.outputs]
    found = helper.make_graph(
        nodes,
        graph,
        [_value(tensor) for tensor in signature.inputs],
        [_value(tensor) for tensor in outputs],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    return helper.make_model(found, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _value(tensor: signatures.Tensor) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(
        tensor.name, helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype)), tensor.shape
    )


_Graph = tuple[list[onnx.NodeProto], dict[str, Array], dict[str, tuple[int | str, ...]]]
_HALF, _FLOAT, _INT32 = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT, onnx.TensorProto.INT32


def _vision(manifest: Manifest) -> _Graph:
    width = manifest.language_model.hidden_size
    nodes = [
        helper.make_node("Cast", ["layout_index"], ["places"], to=_HALF),
        helper.make_node("Unsqueeze", ["places", "one"], ["column"]),
        helper.make_node("ReduceMean", ["pixel_values"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["column", "row"], ["table"]),
        helper.make_node("Add", ["table", "mean"], ["image_features"]),
    ]
    arrays: dict[str, Array] = {"one": np.array([1]), "row": np.ones((1, width), np.float16)}
    return nodes, arrays, {"image_features": ("V", width)}


def _turned(by: int, width: int, vocab_size: int) -> Array:
    """A point on the circle for each token, [vocab, width]."""
    angles = 2 * np.pi * (np.arange(vocab_size) - by) / vocab_size
    table = np.zeros((vocab_size, width), np.float16)
    table[:, 0], table[:, 1] = np.cos(angles), np.sin(angles)
    return table


def embedding_table(manifest: Manifest) -> Array:
    """Its rows, float16 [vocab, H]."""
    info = manifest.language_model
    return _turned(0, info.hidden_size, info.vocab_size)


def _embedding(manifest: Manifest) -> _Graph:
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["inputs_embeds"])]
    return nodes, {"table": embedding_table(manifest)}, {"inputs_embeds": ("T", manifest.language_model.hidden_size)}


def _language_model(manifest: Manifest) -> _Graph:
    info, node = manifest.language_model, helper.make_node
    head = np.ascontiguousarray(_turned(STEP, info.hidden_size, info.vocab_size).T)
    arrays: dict[str, Array] = {"head": head, "one": np.ones(1, np.int32), "ends": np.array([2**31 - 1])}
    arrays |= {"begin": np.array([1]), "zero": np.zeros(1, np.int64)}
    nodes = [
        node("Slice", ["sequence_offsets", "begin", "ends"], ["after"]),
        node("Sub", ["after", "one"], ["last"]),
        node("Gather", ["inputs_embeds", "last"], ["x"]),
        node("MatMul", ["x", "head"], ["y"]),
        node("Cast", ["y"], ["y.float"], to=_FLOAT),
        *(node("Cast", [name], [f"{name}.float"], to=_FLOAT) for name in manifest.experts.inputs),
        *(node("ReduceSum", [f"{name}.float"], [f"{name}.sum"], keepdims=0) for name in manifest.experts.inputs),
        node("Sum", ["y.float", *(f"{name}.sum" for name in manifest.experts.inputs)], ["logits"]),
        node("ArgMax", ["y.float"], ["best"], axis=-1, keepdims=0),
        node("Cast", ["best"], ["next_ids"], to=_INT32),
        node("Gather", ["position_ids", "last"], ["at"]),
        node("Add", ["at", "one"], ["next_position_ids"]),
        node("Shape", ["sequence_ids"], ["rows"]),
        node("Expand", ["one", "rows"], ["ones"]),
    ]
    nodes += [node("Identity", [source], [output]) for output, source in cache_aliases(manifest).items()]
    for g in range(len(signatures.layer_groups(info.layers, manifest.policy.sites))):
        name = graph_io.past_lengths(g)
        nodes.append(
            node(
                "ScatterElements",
                [name, "sequence_ids", "ones"],
                [graph_io.present_name(name)],
                axis=0,
                reduction="add",
            )
        )
    sizes: dict[str, tuple[int | str, ...]] = {
        "logits": ("offsets - 1", info.vocab_size),
        "next_ids": ("offsets - 1",),
        "next_position_ids": ("offsets - 1",),
    }
    for s in range(len(manifest.policy.sites)):
        # As many rows as the site leaves: the first of those there are, and zeros where there are fewer.
        lengths = [f"text.{s}", f"kept.{s}"]
        nodes += [
            node("Shape", ["visual_index"], [f"visual.{s}"]),
            node("Shape", [graph_io.keep_slots(s)], [lengths[1]]),
            node("Sub", ["rows", f"visual.{s}"], [lengths[0]]),
            node("Add", lengths, [f"left.{s}"]),
            node("ConstantOfShape", [f"left.{s}"], [graph_io.kept_index(s)], value=numpy_helper.from_array(_zero())),
        ]
        sizes[graph_io.kept_index(s)] = (f"T - V + K{s}",)
    return nodes, arrays, sizes


def _zero() -> Array:
    return np.zeros(1, np.int32)
