# SPDX-License-Identifier: Apache-2.0
"""Greedy decode steps as one captured CUDA graph, which the device runs from token to token by itself.

A step's inputs stay on the device: the tokens it chooses, their positions and the lengths of the caches are copied over
its own inputs at its end. The host queues the next step before it reads the tokens of this one, so it is one step
behind, and never waits for more than a token.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

from fastmmoe.runtime.backends.base import Steps
from fastmmoe.runtime.backends.tensorrt.caches import SLOTS, DeviceCaches, Storage
from fastmmoe.runtime.backends.tensorrt.device import Address, Graph
from fastmmoe.runtime.backends.tensorrt.engine import Context, Shape
from fastmmoe.runtime.backends.tensorrt.memory import Layout
from fastmmoe.runtime.backends.tensorrt.resources import Resources
from fastmmoe.runtime.bundle import graph_io
from fastmmoe.runtime.types import Array

Queue = Callable[[Context, Mapping[str, Shape], Mapping[str, Address], Mapping[str, Address], Storage], object]


def found_for_next(groups: int) -> dict[str, str]:
    """Input of a step -> the output of the step before that it is: a model of so many layer groups."""
    lengths = [graph_io.past_lengths(g) for g in range(groups)]
    return {
        graph_io.INPUT_IDS: graph_io.NEXT_IDS,
        graph_io.POSITION_IDS: graph_io.NEXT_POSITION_IDS,
    } | {name: graph_io.present_name(name) for name in lengths}


class DecodeSteps:
    """Captures steps, and runs them.

    Args:
        sizes: bytes of each input of a step of the most sequences.
        following: `found_for_next`.

    Attributes:
        state: layout of a step's inputs; those that it finds for the next come first.
        first_bytes: of those.
    """

    def __init__(
        self,
        resources: Resources,
        sizes: Mapping[str, int],
        following: Mapping[str, str],
        lock: threading.Lock,
    ) -> None:
        self._own, self._following, self._lock = resources, following, lock
        first = {name: sizes[name] for name in following}
        self.state = Layout.of(first | {name: size for name, size in sizes.items() if name not in following})
        self.first_bytes = Layout.of(first).size

    def run(self, queue: Queue, arrays: Mapping[str, Array], caches: DeviceCaches, steps: int) -> Steps:
        """Tokens int32 [A] of one step after the other.

        Args:
            queue: queues embedding and language model: context, shapes of inputs, addresses of inputs and of outputs,
                caches.
            arrays: inputs of the first.
        """
        own, storage = self._own, caches.storage
        count = len(arrays[graph_io.INPUT_IDS])
        with self._lock:
            own.device.check_open()
            own.staging.upload(arrays, self.state, storage.state, own.stream)
            graph = storage.graphs.get(count)
            if graph is None:
                graph = self._capture(queue, storage, {name: array.shape for name, array in arrays.items()})
                storage.graphs[count] = graph
        self._launch(graph, storage, 0, count)
        for step in range(steps):
            if step + 1 < steps:
                self._launch(graph, storage, (step + 1) % SLOTS, count)
            with storage.reading:
                own.device.check_open()
                own.device.wait_on_host(storage.read[step % SLOTS])
                found = storage.tokens[step % SLOTS][:count].copy()
            yield found

    def _launch(self, graph: Graph, storage: Storage, slot: int, count: int) -> None:
        own = self._own
        with self._lock:
            own.device.check_open()
            own.device.launch(graph, own.stream)
            tokens = storage.state + self.state.offsets[graph_io.INPUT_IDS]
            own.device.copy(storage.ring + slot * storage.ring_bytes, tokens, 4 * count, own.stream)
            own.device.record(storage.read[slot], own.stream)

    def _capture(self, queue: Queue, storage: Storage, shapes: Mapping[str, Shape]) -> Graph:
        own = self._own
        inputs = self.state.at(storage.state)
        found = {out: storage.following + self.state.offsets[name] for name, out in self._following.items()}
        arguments = (own.decode, shapes, inputs, dict(own.outputs) | found, storage)
        # TensorRT wants to have run once with these shapes. It leaves what the first step will write over.
        queue(*arguments)
        own.device.synchronize(own.stream)
        with own.device.capturing(own.stream) as graphs:
            queue(*arguments)
            own.device.copy(storage.state, storage.following, self.first_bytes, own.stream)
        return graphs[0]
