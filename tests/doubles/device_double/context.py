# SPDX-License-Identifier: Apache-2.0
"""IExecutionContext: checks at the call what TensorRT leaves to its user, computes when the stream gets there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from device_double.device import Device
from device_double.memory import ALIGNMENT, Block, Region, watch
from device_double.misuse import Misuse
from device_double.streams import SCRATCH, Work
from device_double.trt_types import Dims, ILogger, IProfiler
from device_double.twin import from_device, to_device, unpack

if TYPE_CHECKING:
    from device_double.engine import ICudaEngine

DYNAMIC = -1
NO_PROFILE = -1
LAYER_MS = 0.25


class IExecutionContext:
    """One use of an engine: a profile, shapes, addresses, scratch memory."""

    def __init__(self, engine: ICudaEngine, scratch: Block | None) -> None:
        self._engine, self._own_scratch = engine, scratch
        self._device: Device = engine._device
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._refused: dict[str, str] = {}
        self._addresses: dict[str, int] = {}
        self._scratch = (0, 0) if scratch is None else (scratch.ptr, scratch.size)
        self._profiler: IProfiler | None = None
        self._settled: tuple[int, dict[str, tuple[int, ...]]] | None = None
        # The first context of an engine has profile 0; another has none until it is told.
        self._profile = NO_PROFILE if engine._contexts else 0
        engine._contexts += 1

    def __del__(self) -> None:
        if self._own_scratch is not None and self._own_scratch.is_live:
            self._device.memory.free(self._own_scratch)

    @property
    def engine(self) -> ICudaEngine:
        """Its engine."""
        return self._engine

    @property
    def active_optimization_profile(self) -> int:
        """Its profile; -1: none yet."""
        return self._profile

    @property
    def all_binding_shapes_specified(self) -> bool:
        """Whether every input has a shape."""
        return not self.infer_shapes()

    @property
    def profiler(self) -> IProfiler | None:
        """Is told the time of every layer: here of each node LAYER_MS, before the call returns."""
        return self._profiler

    @profiler.setter
    def profiler(self, profiler: IProfiler | None) -> None:
        self._profiler = profiler

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        """Choose a profile; shapes of inputs must be set again if it is another one."""
        self._device.stream(stream_handle, "set_optimization_profile_async")
        if not 0 <= profile_index < self._engine.num_optimization_profiles:
            return self._fail(f"profile {profile_index} of {self._engine.num_optimization_profiles}")
        if profile_index != self._profile:
            self._shapes.clear()
            self._refused.clear()
        self._profile = profile_index
        return True

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        """The shape of an input; False and a message where the profile does not allow it."""
        given = tuple(map(int, shape))
        if name not in self._engine._inputs:
            return self._fail(f"set_input_shape: {name} is no input")
        if self._profile == NO_PROFILE:
            return self._fail("set_input_shape: the context has no optimization profile")
        least, _, most = self._engine.get_tensor_profile_shape(name, self._profile)
        if len(given) != len(least) or any(not a <= s <= b for a, s, b in zip(least, given, most, strict=True)):
            self._refused[name] = f"{name} is {list(given)}, profile {self._profile} has {least} to {most}"
            return self._fail(f"set_input_shape: {self._refused[name]}")
        self._refused.pop(name, None)
        self._shapes[name] = given
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        """Where an input or output lies."""
        if name not in self._engine._tensors:
            return self._fail(f"set_tensor_address: {name} is neither input nor output")
        self._addresses[name] = int(memory)
        return True

    def get_tensor_address(self, name: str) -> int:
        """As set; 0: not yet."""
        return self._addresses.get(name, 0)

    def get_tensor_shape(self, name: str) -> Dims:
        """-1 where inputs without a shape decide."""
        if name in self._shapes:
            return Dims(self._shapes[name])
        return Dims(self._engine._tensors[name].dims(self._sizes()))

    def infer_shapes(self) -> list[str]:
        """Inputs without a shape."""
        return [n for n in self._engine._inputs if DYNAMIC in self._input_shape(n)]

    def set_device_memory(self, memory: int, size: int) -> None:
        """Scratch memory for a context that has none of its own."""
        if self._own_scratch is not None:
            raise Misuse("scratch", "set_device_memory: the context has scratch memory of its own")
        self._scratch = (int(memory), int(size))

    def update_device_memory_size_for_shapes(self) -> int:
        """Scratch memory that the shapes need: that of the profile."""
        return self._engine.get_device_memory_size_for_profile_v2(max(0, self._profile))

    def set_aux_streams(self, aux_streams: Sequence[int]) -> None:
        """Streams for an engine that uses several; they must be there."""
        for stream in aux_streams:
            self._device.stream(stream, "set_aux_streams")

    def execute_async_v3(self, stream_handle: int) -> bool:
        """Queue a run with the shapes and addresses of now.

        Raises:
            Misuse: what the real one would answer with wrong results.
        """
        device = self._device
        with device.lock:
            lane = device.stream(stream_handle, "execute_async_v3")
            work = self._work()
            if lane.capture is not None and lane.capture.is_invalid:
                return self._fail("execute_async_v3: the capture is invalid")
            if lane.capture is not None and self._profiler is not None:
                return self._fail("execute_async_v3: a context with a profiler cannot be captured")
            self._check_capture(is_captured=lane.capture is not None)
            device.counters.enqueues += 1
            device.scheduler.queue(lane, work)
            if self._profiler is not None:
                device.scheduler.synchronize(lane)
                for node in self._engine._file.graph().graph.node:
                    self._profiler.report_layer_time(node.name, LAYER_MS)
        return True

    def _check_capture(self, *, is_captured: bool) -> None:
        """TensorRT settles what shapes need in the first run with them, which no capture can hold."""
        settled = (self._profile, dict(self._shapes))
        if not is_captured:
            self._settled = settled
        elif self._settled != settled:
            raise Misuse("capture-first", "execute_async_v3: captured before a run with these shapes")

    def _fail(self, message: str) -> bool:
        self._engine._logger.log(ILogger.ERROR, f"IExecutionContext: {message}")
        return False

    def _input_shape(self, name: str) -> tuple[int, ...]:
        return self._shapes.get(name) or self._engine._inputs[name].dims({})

    def _sizes(self) -> dict[str, int]:
        """Sizes of the names of dimensions, from the shapes of inputs.

        Raises:
            Misuse: two inputs give a name different sizes.
        """
        sizes: dict[str, int] = {}
        for name, shape in self._shapes.items():
            for dimension, size in zip(self._engine._inputs[name].shape, shape, strict=True):
                if isinstance(dimension, str) and sizes.setdefault(dimension, size) != size:
                    text = f"{name} is {list(shape)}, {dimension} is {sizes[dimension]} in another input"
                    raise Misuse("shape-mismatch", text)
        return sizes

    def _work(self) -> Work:
        if self._refused:
            raise Misuse("out-of-profile", next(iter(self._refused.values())))
        if self._profile == NO_PROFILE:
            raise Misuse("unset-profile", "execute_async_v3: the context has no optimization profile")
        if missing := self.infer_shapes():
            raise Misuse("unset-shape", f"execute_async_v3: no shape for {', '.join(missing)}")
        if missing := [name for name in self._engine._tensors if not self._addresses.get(name)]:
            raise Misuse("unset-address", f"execute_async_v3: no address for {', '.join(missing)}")
        sizes = self._sizes()
        shapes = {name: tensor.dims(sizes) for name, tensor in self._engine._tensors.items()}
        regions = {name: self._region(name, shape) for name, shape in shapes.items()}
        scratch = self._scratch_region()
        self._check_overlaps(regions, scratch)
        reads = tuple(regions[name] for name in self._engine._inputs)
        writes = (*(regions[name] for name in self._engine._outputs), scratch)
        run = _Run(self, shapes, regions, scratch)
        names = {region: name for name, region in regions.items()} | {scratch: SCRATCH}
        return Work("enqueue", _without_empty(reads), _without_empty(writes), run, names)

    def _region(self, name: str, shape: tuple[int, ...]) -> Region:
        """Where a tensor lies; of an empty one, an address in memory that is there."""
        address = self._addresses[name]
        if DYNAMIC in shape or any(size < 0 for size in shape):
            raise Misuse("unset-shape", f"execute_async_v3: {name} has the shape {list(shape)}")
        if address % ALIGNMENT:
            raise Misuse("misaligned", f"execute_async_v3: {name} is at {address:#x}, no multiple of {ALIGNMENT}")
        size = self._engine._tensors[name].bytes_of(shape)
        return self._device.memory.region(address, size, f"execute_async_v3, {name}")

    def _scratch_region(self) -> Region:
        address, size = self._scratch
        needed = self._engine.get_device_memory_size_for_profile_v2(self._profile)
        if not address:
            raise Misuse("scratch", f"execute_async_v3: no scratch memory, expected {needed} bytes (set_device_memory)")
        if address % ALIGNMENT:
            raise Misuse("misaligned", f"execute_async_v3: scratch memory at {address:#x}")
        if size < needed:
            raise Misuse("scratch", f"execute_async_v3: {size} bytes of scratch memory, expected {needed}")
        return self._device.memory.region(address, needed, f"execute_async_v3, {SCRATCH}")

    def _check_overlaps(self, regions: dict[str, Region], scratch: Region) -> None:
        aliases = self._engine._file.aliases
        for output, source in aliases.items():
            if self._addresses[output] != self._addresses[source]:
                raise Misuse("alias-elsewhere", f"execute_async_v3: {output} must have the address of {source}")
        named = sorted([*regions.items(), (SCRATCH, scratch)], key=lambda item: item[1].start)
        written = {*self._engine._outputs, SCRATCH}
        for at, (name, region) in enumerate(named):
            for other, following in named[at + 1 :]:
                if following.start >= region.end:
                    break
                is_declared = aliases.get(name) == other or aliases.get(other) == name
                if region.overlaps(following) and not is_declared and {name, other} & written:
                    raise Misuse("overlap", f"execute_async_v3: {name} and {other} overlap")


def _without_empty(regions: Sequence[Region]) -> tuple[Region, ...]:
    return tuple(region for region in regions if region.size)


class _Run:
    """One run: addresses and shapes of the call, values of when it happens."""

    def __init__(
        self,
        context: IExecutionContext,
        shapes: dict[str, tuple[int, ...]],
        regions: dict[str, Region],
        scratch: Region,
    ) -> None:
        self._engine, self._device, self._kept = context._engine, context._device, context._engine._kept
        self._shapes, self._regions, self._scratch = shapes, regions, scratch

    def __call__(self) -> None:
        engine = self._engine
        aliased = engine._file.aliases
        own = {name: self._regions[name] for name in engine._outputs if name not in aliased}
        if self._device.is_no_op:
            for region in own.values():
                region.bytes()[:] = 0
            return
        for region in (*own.values(), self._scratch):
            region.poison()
        packed = engine._twin.packed
        parts = {name for one in packed.values() for name in one[:3] if name is not None}
        feeds = {name: self._input(name) for name in engine._inputs if name not in parts}
        for name, one in packed.items():
            feeds[name] = self._experts(name, tuple(part for part in one[:3] if part is not None))
        try:
            results = engine._session.run(list(engine._outputs), feeds)
        except Exception as error:  # ONNX Runtime's classes share no base
            raise Misuse("run-failed", f"the engine cannot compute: {' '.join(str(error).split())}") from error
        for name, values in zip(engine._outputs, results, strict=True):
            self._output(name, values)

    def _input(self, name: str) -> Any:
        """An input for the twin. One of fixed shape is converted again only once work has written it."""
        tensor, region = self._engine._inputs[name], self._regions[name]
        if any(isinstance(size, str) for size in tensor.shape):
            return self._convert(name)
        return self._keep((name, region.start), [region], lambda: self._convert(name))

    def _convert(self, name: str) -> Any:
        tensor = self._engine._inputs[name]
        return from_device(self._regions[name].bytes(), tensor.onnx_type, self._shapes[name]).copy()

    def _experts(self, name: str, parts: tuple[str, ...]) -> Any:
        regions = [self._regions[part] for part in parts]
        key = (name, *(region.start for region in regions))
        packed = self._engine._twin.packed[name]
        return self._keep(key, regions, lambda: unpack(packed, {part: self._convert(part) for part in parts}))

    def _keep(self, key: tuple[Any, ...], regions: list[Region], make: Any) -> Any:
        watches, value = self._kept.get(key, ([], None))
        if not watches or not all(one.is_valid for one in watches):
            value = make()
            self._kept[key] = ([watch(region) for region in regions], value)
        return value

    def _output(self, name: str, values: Any) -> None:
        region, expected = self._regions[name], self._shapes[name]
        if tuple(values.shape) != expected:
            raise Misuse("shape-mismatch", f"{name} is {list(values.shape)}, planned was {list(expected)}")
        if math.prod(expected):
            region.bytes()[:] = to_device(np.asarray(values), self._engine._outputs[name].onnx_type)
