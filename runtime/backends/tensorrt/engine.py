# SPDX-License-Identifier: Apache-2.0
"""TensorRT's execution classes: an engine that was checked against the manifest, and its contexts."""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from fastmmoe.runtime.backends.node_times import Call, NodeTime
from fastmmoe.runtime.backends.tensorrt.api import make_profiler, one_line
from fastmmoe.runtime.backends.tensorrt.device import Address, Stream
from fastmmoe.runtime.backends.tensorrt.profiles import Profile
from fastmmoe.runtime.bundle.manifest import ENGINES
from fastmmoe.runtime.bundle.signatures import Signature
from fastmmoe.runtime.errors import BundleMismatch, RunFailed

Shape: TypeAlias = tuple[int, ...]

DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT8": "int8",
    "INT32": "int32",
}
"""TensorRT's names of element types -> NumPy's."""
DYNAMIC = -1


class Engine:
    """A graph's engine.

    Args:
        trt: the module `tensorrt` or `tensorrt_rtx`.
        logger: keeps the errors (`api.make_logger`).
        runtime: what reads engines.
        signature: of the graph, by the manifest.
        aliases: outputs that have the address of an input, and which.
    Raises:
        BundleMismatch: TensorRT refuses the file, or it is of another graph.

    Attributes:
        calls: times of its layers, of the contexts that note them.
    """

    def __init__(
        self, trt: Any, logger: Any, runtime: Any, path: Path, signature: Signature, aliases: Mapping[str, str]
    ) -> None:
        self._trt, self.logger, self.path, self.signature = trt, logger, path, signature
        self.calls: list[Call] = []
        if not path.stat().st_size:
            raise self._misfit("is empty")
        with path.open("rb") as file:
            # The kernel takes the pages of a mapped file back where memory is short, which a copy's it could not.
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data, memoryview(data) as view:
                self._engine = runtime.deserialize_cuda_engine(view)
            # On Jetson the page cache and the device's memory are the same: what was read would be there twice.
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if self._engine is None:
            raise BundleMismatch(
                f"{path}: {trt.__name__} {trt.__version__} cannot read it: {last_error(logger)}; build the engines "
                f"again: fastmmoe build {path.parent}"
            )
        self._check_tensors(aliases)

    @property
    def profiles(self) -> int:
        """How many optimisation profiles it has."""
        return int(self._engine.num_optimization_profiles)

    def check_profiles(self, expected: Sequence[Profile]) -> None:
        """Raise BundleMismatch unless it takes the shapes that follow from the limits."""
        if self.profiles != len(expected):
            raise self._misfit(f"{self.profiles} profiles, expected {len(expected)}")
        for index, profile in enumerate(expected):
            for name, (least, _, most) in profile.items():
                shapes = [tuple(shape) for shape in self._engine.get_tensor_profile_shape(name, index)]
                if (shapes[0], shapes[-1]) != (least, most):
                    raise self._misfit(
                        f"takes {name} of {list(shapes[0])} to {list(shapes[-1])}, expected {list(least)} to "
                        f"{list(most)} by the limits in {ENGINES}"
                    )

    def scratch_bytes(self) -> int:
        """Device memory that a context needs, whatever its profile."""
        sizes = (self._engine.get_device_memory_size_for_profile_v2(i) for i in range(self.profiles))
        return max(int(size) for size in sizes)

    def context(
        self, profile: int, scratch: tuple[Address, int], stream: Stream, *, notes_times: bool = False
    ) -> Context:
        """A context of one profile for good, on a block of device memory (address, bytes) that is its own while it
        runs.

        Args:
            notes_times: of its layers, in `calls`; a call then returns once it is done, and cannot be captured.
        """
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        made = self._engine.create_execution_context(strategy)
        if made is None or not made.set_optimization_profile_async(profile, stream):
            raise RunFailed(f"{self.path}: no context of profile {profile}: {last_error(self.logger)}")
        made.set_device_memory(*scratch)
        profiler = make_profiler(self._trt) if notes_times else None
        if profiler is not None:
            made.profiler = profiler
        return Context(self, made, profiler)

    def _check_tensors(self, aliases: Mapping[str, str]) -> None:
        engine, mode = self._engine, self._trt.TensorIOMode
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        for side, of_side in ((mode.INPUT, self.signature.inputs), (mode.OUTPUT, self.signature.outputs)):
            found = {name for name in names if engine.get_tensor_mode(name) == side}
            different = sorted(found ^ {tensor.name for tensor in of_side})
            if different:
                raise self._misfit(f"its {side.name.lower()}s are others than the manifest's: {', '.join(different)}")
            for tensor in of_side:
                dtype = DTYPES.get(engine.get_tensor_dtype(tensor.name).name)
                shape = tuple(engine.get_tensor_shape(tensor.name))
                expected = tuple(size if isinstance(size, int) else DYNAMIC for size in tensor.shape)
                if dtype != tensor.dtype or (side == mode.INPUT and shape != expected):
                    raise self._misfit(
                        f"{tensor.name} is {dtype} {list(shape)}, expected {tensor.dtype} {list(expected)}"
                    )
        # From TensorRT 10.15 on an engine says which outputs have the address of an input.
        if hasattr(engine, "get_aliased_input_tensor"):
            for name in names:
                alias = engine.get_aliased_input_tensor(name) or None
                if alias != aliases.get(name):
                    raise self._misfit(f"{name} has the address of {alias}, expected {aliases.get(name)}")

    def _misfit(self, what: str) -> BundleMismatch:
        return BundleMismatch(f"{self.path}: {what}; build the engines again: fastmmoe build {self.path.parent}")


class Context:
    """What runs an engine. It may be used by one thread at a time; what it queues runs in the stream's order."""

    def __init__(self, engine: Engine, context: Any, profiler: Any = None) -> None:
        """profiler: the context's (`make_profiler`), None where times are not noted."""
        self._engine, self._context, self._profiler = engine, context, profiler
        self._shapes: dict[str, Shape] = {}
        self._addresses: dict[str, Address] = {}

    def run(
        self,
        inputs: Mapping[str, Shape],
        outputs: Mapping[str, Shape],
        addresses: Mapping[str, Address],
        stream: Stream,
    ) -> None:
        """Queue the engine.

        Args:
            inputs: shapes of those that have dimensions which may change.
            outputs: shapes that follow from them.
            addresses: of every tensor.
        Raises:
            RunFailed: TensorRT refuses them; its reason is in the message.
        """
        try:
            self._set(inputs, outputs, addresses)
            if not self._context.execute_async_v3(stream):
                raise self._failure("cannot run it")
            if self._profiler is not None:
                self._engine.calls.append([NodeTime(name, "", ms) for name, ms in self._profiler.layers])
                self._profiler.layers.clear()
        except BaseException:
            # TensorRT keeps some of what it was given: the next run says all of it again.
            self._shapes.clear()
            self._addresses.clear()
            raise

    def _set(self, inputs: Mapping[str, Shape], outputs: Mapping[str, Shape], addresses: Mapping[str, Address]) -> None:
        """Give the context what has changed since the last run."""
        changed = {name: shape for name, shape in inputs.items() if self._shapes.get(name) != shape}
        for name, shape in changed.items():
            if not self._context.set_input_shape(name, shape):
                raise self._failure(f"refuses {name} of {list(shape)}")
        for name, address in addresses.items():
            if self._addresses.get(name) != address and not self._context.set_tensor_address(name, address):
                raise self._failure(f"refuses an address for {name}")
        if changed:
            self._check_shapes(outputs)
        self._shapes.update(changed)
        self._addresses.update(addresses)

    def _check_shapes(self, outputs: Mapping[str, Shape]) -> None:
        missing = self._context.infer_shapes()
        if missing:
            raise self._failure(f"lacks shapes or addresses of {', '.join(missing)}")
        for name, expected in outputs.items():
            found = tuple(self._context.get_tensor_shape(name))
            if found != expected:
                raise self._failure(f"makes {name} of {list(found)}, expected {list(expected)}")

    def _failure(self, what: str) -> RunFailed:
        return RunFailed(f"{self._engine.path.name}: TensorRT {what}: {last_error(self._engine.logger)}")


def last_error(logger: Any) -> str:
    """What TensorRT said last, as part of a line."""
    return one_line(logger.errors[-1]) if logger.errors else "no reason given"
