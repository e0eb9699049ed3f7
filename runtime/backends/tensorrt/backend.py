# SPDX-License-Identifier: Apache-2.0
"""A bundle's engines in TensorRT. What the host does not ask for never leaves the device.

One stream has the language model's work, another that of the vision graph. A call uploads its small inputs in one copy,
embeds its ids straight into the language model's input, and copies the pictures' features over the rows of visual
tokens. Decode steps of greedy requests are one captured graph (decoding.py).
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping, Sequence

import numpy as np

from fastmmoe.runtime.backends.base import Feeds, OfManifest, Steps
from fastmmoe.runtime.backends.elements import as_dtype, no_room, tensor_bytes
from fastmmoe.runtime.backends.node_times import Call
from fastmmoe.runtime.backends.rows import PromptRows, placements
from fastmmoe.runtime.backends.settings import TENSORRT
from fastmmoe.runtime.backends.tensorrt.caches import CachePool, DeviceCaches, Storage, copy_caches
from fastmmoe.runtime.backends.tensorrt.decoding import DecodeSteps, found_for_next
from fastmmoe.runtime.backends.tensorrt.device import Address, OutOfDeviceMemory
from fastmmoe.runtime.backends.tensorrt.engine import Context, Shape
from fastmmoe.runtime.backends.tensorrt.limits import CallLimits, output_shapes
from fastmmoe.runtime.backends.tensorrt.memory import Layout
from fastmmoe.runtime.backends.tensorrt.resources import Resources
from fastmmoe.runtime.backends.tensorrt.vision import DeviceFeatures
from fastmmoe.runtime.bundle import graph_io, signatures
from fastmmoe.runtime.bundle.manifest import Manifest
from fastmmoe.runtime.method.call import NO_VISUAL_TOKENS, Chunk
from fastmmoe.runtime.types import Array


class TensorRT(OfManifest):
    """The engines of a bundle (see `Backend`).

    Args:
        resources: engines, contexts and memory, which it owns from here on.
    """

    def __init__(self, manifest: Manifest, resources: Resources) -> None:
        self.manifest, self._own = manifest, resources
        self._limits = CallLimits(manifest, resources.limits, resources.directory)
        self._outputs = {tensor.name: tensor for tensor in signatures.signatures(manifest)["language_model"].outputs}
        self._dtypes = {tensor.name: tensor.dtype for tensor in self._limits.inputs}
        self._lock = threading.Lock()
        groups = len(signatures.layer_groups(self.info.layers, self.policy.sites))
        sizes = {name: tensor_bytes(*tensor) for name, tensor in self._limits.decode_inputs().items()}
        self._steps = DecodeSteps(resources, sizes, found_for_next(groups), self._lock)
        self._pool = CachePool(resources.device, resources.stream, self._steps.state, self._steps.first_bytes)
        self._finalizer = weakref.finalize(self, _give_back, resources, self._pool)
        # The process's end gives everything back by itself.
        self._finalizer.atexit = False

    @property
    def provider(self) -> str:
        """Its name in statistics."""
        return TENSORRT

    @property
    def longest(self) -> int:
        """The most positions of a sequence: those that the engines' caches have room for."""
        return min(super().longest, self._own.limits.max_cache)

    def image_features(self, vision_inputs: dict[str, Array]) -> DeviceFeatures:
        """Features [V, H] of every visual position; they are computed while the host goes on."""
        return self._own.vision.run(vision_inputs, self._limits.check_pictures(vision_inputs))

    def embed(
        self, input_ids: Array, visual_index: Array = NO_VISUAL_TOKENS, features: DeviceFeatures | None = None
    ) -> PromptRows[DeviceFeatures]:
        """See `Backend.embed`."""
        return PromptRows(np.asarray(input_ids, np.int32), np.asarray(visual_index), features)

    def new_caches(self, sequences: int, capacities: Sequence[int], before: DeviceCaches | None = None) -> DeviceCaches:
        """See `Backend.new_caches`."""
        self._limits.check_caches(sequences, capacities)
        dtype = self.manifest.cache_dtype
        shapes = signatures.cache_shapes(self.info, self.policy, dtype, sequences, capacities)
        with self._lock:
            self._own.device.check_open()
            try:
                storage = self._pool.take(sequences, shapes)
            except OutOfDeviceMemory as error:
                free, _ = self._own.device.memory()
                raise OutOfDeviceMemory(no_room(shapes, str(error), free)) from error
            # Whatever happens from here on, the memory comes back.
            caches = DeviceCaches(self._pool, storage)
            if before is not None:
                copy_caches(self._own.device, storage, before.storage, self._own.stream)
        return caches

    def has_room_for(self, chunks: Sequence[Chunk]) -> bool:
        """Whether the prefill's profile takes them."""
        limits = self._own.limits
        tokens, visual = sum(len(c.inputs_embeds) for c in chunks), sum(len(c.visual_index) for c in chunks)
        return tokens <= limits.max_tokens and visual <= limits.max_visual

    def extend(self, feeds: Feeds, caches: DeviceCaches, wanted: Sequence[str]) -> dict[str, Array]:
        """One call of the language model; see `Backend.extend`."""
        own = self._own
        rows: list[PromptRows[DeviceFeatures]] = feeds[graph_io.INPUTS_EMBEDS]
        arrays = self._arrays(feeds)
        self._limits.check_call(arrays)
        is_decode = all(len(one) == 1 for one in rows) and len(rows) <= own.limits.max_batch and not _pictures(rows)
        with self._lock:
            own.device.check_open()
            layout = Layout.of({name: array.nbytes for name, array in arrays.items()})
            own.staging.upload(arrays, layout, own.inputs, own.stream)
            shapes = {name: array.shape for name, array in arrays.items()}
            context = own.decode if is_decode else own.prefill
            outputs = self._call(context, shapes, layout.at(own.inputs), own.outputs, caches.storage, rows)
            tensors = ((n, own.outputs[n], outputs[n], self._outputs[n].dtype) for n in wanted)
            return own.results.fetch(tensors, own.stream)

    def decode(self, feeds: Feeds, caches: DeviceCaches, steps: int) -> Steps | None:
        """Steps of a captured graph, where no times of layers are noted; see `Backend.decode`."""
        if self._own.notes_times:
            return None
        arrays = self._arrays(feeds)
        self._limits.check_call(arrays)
        return self._steps.run(self._call, arrays, caches, steps)

    def end_profiling(self) -> dict[str, list[Call]]:
        """See `Profilable`."""
        return {graph: list(calls) for graph, calls in self._own.calls.items()}

    def close(self) -> None:
        """See `Backend.close`."""
        with self._lock:
            self._finalizer()

    def _arrays(self, feeds: Feeds) -> dict[str, Array]:
        """The inputs that a call uploads, ids first, in their dtypes."""
        rows: list[PromptRows[DeviceFeatures]] = feeds[graph_io.INPUTS_EMBEDS]
        ids = np.concatenate([one.input_ids for one in rows])
        others = {n: as_dtype(v, self._dtypes[n]) for n, v in feeds.items() if n != graph_io.INPUTS_EMBEDS}
        return {graph_io.INPUT_IDS: ids} | others

    def _call(
        self,
        context: Context,
        shapes: Mapping[str, Shape],
        inputs: Mapping[str, Address],
        outputs: Mapping[str, Address],
        caches: Storage,
        rows: Sequence[PromptRows[DeviceFeatures]] = (),
    ) -> dict[str, Shape]:
        """Queue the embedding and the language model; the shapes of its outputs.

        Args:
            shapes, inputs: of the inputs that a call uploads, and where they are.
        """
        own, width = self._own, self.info.hidden_size
        (tokens,) = shapes[graph_io.INPUT_IDS]
        embeds = {graph_io.INPUTS_EMBEDS: (tokens, width)}
        own.embedding.run(
            {graph_io.INPUT_IDS: (tokens,)},
            embeds,
            {graph_io.INPUT_IDS: inputs[graph_io.INPUT_IDS], graph_io.INPUTS_EMBEDS: own.embeds},
            own.stream,
        )
        self._place_features(rows)
        taken = embeds | {name: shape for name, shape in shapes.items() if name != graph_io.INPUT_IDS}
        of_caches = {name: shape for name, (shape, _, _) in caches.tensors.items()}
        made = output_shapes(self.manifest, shapes, of_caches)
        addresses = {name: address for name, address in inputs.items() if name != graph_io.INPUT_IDS}
        addresses |= {graph_io.INPUTS_EMBEDS: own.embeds} | dict(own.experts)
        places = caches.addresses()
        addresses |= places | {graph_io.present_name(name): address for name, address in places.items()}
        changing = {name: shape for name, shape in (taken | of_caches).items() if name in self._limits.changing}
        context.run(changing, made, addresses | dict(outputs), own.stream)
        return made

    def _place_features(self, prompts: Sequence[PromptRows[DeviceFeatures]]) -> None:
        """Queue copies of features over the embeddings of visual tokens, one for each run of neighbours."""
        own = self._own
        row = tensor_bytes((self.info.hidden_size,), self.manifest.activation_dtype)
        for features, copies in placements(prompts):
            own.device.wait(own.stream, features.block.done)
            features.block.was_read = True
            with own.device.marked(features.block.read, own.stream):
                for place, start, count in copies:
                    source = features.block.address + start * row
                    own.device.copy(own.embeds + place * row, source, count * row, own.stream)


def _give_back(resources: Resources, pool: CachePool) -> None:
    resources.device.retire()
    try:
        resources.device.synchronize(resources.stream)
        pool.close()
    finally:
        resources.close()


def _pictures(rows: Sequence[PromptRows[DeviceFeatures]]) -> bool:
    return any(len(one.visual_index) for one in rows)
