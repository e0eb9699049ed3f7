# SPDX-License-Identifier: Apache-2.0
"""What a loaded bundle holds of a device: engines, contexts, streams, and memory for the greatest call, made once."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastmmoe.runtime.backends.elements import tensor_bytes
from fastmmoe.runtime.backends.tensorrt.api import make_logger
from fastmmoe.runtime.backends.tensorrt.device import Address, Device
from fastmmoe.runtime.backends.tensorrt.engine import Engine, last_error
from fastmmoe.runtime.backends.tensorrt.experts import experts_layout, load_experts
from fastmmoe.runtime.backends.tensorrt.limits import CallLimits
from fastmmoe.runtime.backends.tensorrt.memory import Layout, Results, Staging
from fastmmoe.runtime.backends.tensorrt.profiles import engine_profiles
from fastmmoe.runtime.backends.tensorrt.vision import Vision
from fastmmoe.runtime.bundle import graph_io, signatures
from fastmmoe.runtime.bundle.manifest import GRAPHS, PLUGIN, Engines, Manifest, engine_file, weights_file
from fastmmoe.runtime.errors import BackendMissing, BundleMismatch

PREFILL, DECODE = 0, 1
"""The language model's profiles."""


class Resources:
    """Everything of a device that a bundle needs.

    Args:
        trt: the module `tensorrt` or `tensorrt_rtx`.
        notes_times: of every layer, in `calls`; nothing can be captured then.
    Raises:
        BundleMismatch: an engine or the plugin cannot be loaded, or does not fit the manifest.
        OutOfDeviceMemory: they do not fit on the device.

    Attributes:
        stream: where the language model's work is queued.
        inputs: address of a call's inputs.
        embeds: address of inputs_embeds.
        outputs: addresses of the language model's outputs but the caches.
        experts: addresses of the experts' weights.
        calls: of each graph the times of its layers, call by call; empty where they are not noted.
        staging, results: what passes between host and device.
    """

    def __init__(
        self,
        trt: Any,
        device: Device,
        directory: Path,
        manifest: Manifest,
        engines: Engines,
        *,
        notes_times: bool = False,
    ) -> None:
        self.device, self.limits, self.directory = device, engines.limits, directory
        self.notes_times = notes_times
        with contextlib.ExitStack() as stack:
            self._stack = stack
            self._open(trt, manifest, engines)
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Give it all back; no work may be queued any more."""
        self._stack.close()

    def _open(self, trt: Any, manifest: Manifest, engines: Engines) -> None:
        device, stack = self.device, self._stack
        self.stream, low = device.make_streams()
        stack.callback(device.destroy_stream, low)
        stack.callback(device.destroy_stream, self.stream)
        read = self._read_engines(trt, manifest)
        for graph, profiles in engine_profiles(manifest, engines.limits).items():
            read[graph].check_profiles(profiles)
        self.calls = {graph: engine.calls for graph, engine in read.items()}
        language_model = read["language_model"]
        scratch = [
            self._scratch(size)
            for size in (
                language_model.scratch_bytes(),
                read["embedding"].scratch_bytes(),
                read["vision"].scratch_bytes(),
            )
        ]
        # Prefill and decode share a block: they run one after the other.
        self.prefill = language_model.context(PREFILL, scratch[0], self.stream, notes_times=self.notes_times)
        self.decode = language_model.context(DECODE, scratch[0], self.stream, notes_times=self.notes_times)
        self.embedding = read["embedding"].context(0, scratch[1], self.stream, notes_times=self.notes_times)
        vision = read["vision"].context(0, scratch[2], low, notes_times=self.notes_times)
        self._allocate(manifest, engines)
        self._open_vision(manifest, engines, vision, low)
        stack.callback(self._drop_contexts)

    def _drop_contexts(self) -> None:
        """Contexts, then engines, go before the memory that they use."""
        del self.prefill, self.decode, self.embedding

    def _read_engines(self, trt: Any, manifest: Manifest) -> dict[str, Engine]:
        logger = make_logger(trt)
        plugin = self.directory / PLUGIN
        if trt.get_plugin_registry().load_library(str(plugin)) is None:
            raise BundleMismatch(f"{plugin}: {trt.__name__} {trt.__version__} cannot load it: {last_error(logger)}")
        try:
            runtime = trt.Runtime(logger)
        except TypeError as error:  # what its bindings make of a runtime that is a null pointer
            raise BackendMissing(f"{trt.__name__} {trt.__version__} cannot start: {last_error(logger)}") from error
        given = signatures.signatures(manifest)
        caches = signatures.cache_inputs(manifest.language_model, manifest.policy, manifest.cache_dtype)
        aliases = {"language_model": {graph_io.present_name(tensor.name): tensor.name for tensor in caches}}
        return {
            graph: Engine(
                trt, logger, runtime, self.directory / engine_file(graph), given[graph], aliases.get(graph, {})
            )
            for graph in GRAPHS
        }

    def _scratch(self, size: int) -> tuple[Address, int]:
        size = max(size, 1)
        return self._block(size), size

    def _block(self, size: int) -> Address:
        address = self.device.allocate(size)
        self._stack.callback(self.device.free, address)
        return address

    def _allocate(self, manifest: Manifest, engines: Engines) -> None:
        limits, info = engines.limits, manifest.language_model
        calls = CallLimits(manifest, limits, self.directory)
        layout = Layout.of({name: tensor_bytes(*tensor) for name, tensor in calls.prefill_inputs().items()})
        self.inputs, self.staging = self._block(layout.size), Staging(self.device, layout.size)
        self._stack.callback(self.staging.close)
        self.embeds = self._block(tensor_bytes((limits.max_tokens, info.hidden_size), manifest.activation_dtype))
        outputs = Layout.of(self._output_bytes(manifest, engines))
        self.outputs: Mapping[str, Address] = outputs.at(self._block(outputs.size))
        self.results = Results(self.device, outputs.size)
        self._stack.callback(self.results.close)
        self.experts: Mapping[str, Address] = {}
        if manifest.experts.inputs:
            block = self._block(experts_layout(manifest.experts.inputs).size)
            weights = self.directory / weights_file("language_model")
            self.experts = load_experts(self.device, weights, manifest.experts.inputs, block, self.stream)

    @staticmethod
    def _output_bytes(manifest: Manifest, engines: Engines) -> dict[str, int]:
        """Of every output but the caches, which have the addresses of inputs."""
        limits, info = engines.limits, manifest.language_model
        groups = len(signatures.layer_groups(info.layers, manifest.policy.sites))
        lengths = [graph_io.present_name(graph_io.past_lengths(g)) for g in range(groups)]
        a_token = dict.fromkeys((graph_io.NEXT_IDS, graph_io.NEXT_POSITION_IDS, *lengths), 4 * limits.max_batch)
        kept = {graph_io.kept_index(s): 4 * limits.max_tokens for s in range(len(manifest.policy.sites))}
        return {graph_io.LOGITS: 4 * limits.max_batch * info.vocab_size} | a_token | kept

    def _open_vision(self, manifest: Manifest, engines: Engines, context: Any, stream: Any) -> None:
        inputs = signatures.signatures(manifest)["vision"].inputs
        (profile,) = engine_profiles(manifest, engines.limits)["vision"]
        layout = Layout.of({t.name: tensor_bytes(profile[t.name][2], t.dtype) for t in inputs})
        block, staging = self._block(layout.size), Staging(self.device, layout.size)
        self._stack.callback(staging.close)
        row = tensor_bytes((manifest.language_model.hidden_size,), manifest.activation_dtype)
        self.vision = Vision(self.device, context, inputs, block, staging, stream, row)
        self._stack.callback(self.vision.close)
