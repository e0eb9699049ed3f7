# SPDX-License-Identifier: Apache-2.0
"""The one simulated device of a process, as environment variables describe it, and what tests may ask and set."""

from __future__ import annotations

import os
import random
import threading
from dataclasses import dataclass, field, replace

from device_double.memory import Memory
from device_double.misuse import Misuse
from device_double.streams import Capture, Event, Graph, Lane, Scheduler

SEED, MEMORY, GPU = "FASTMMOE_DOUBLE_SEED", "FASTMMOE_DOUBLE_MEMORY", "FASTMMOE_DOUBLE_GPU"
DEFAULT_MEMORY = 16 << 30
NO_DEVICE, OLD_DRIVER = "none", "old"


@dataclass(frozen=True)
class Gpu:
    """What the device says of itself.

    Attributes:
        state: "" or why there is none to use: NO_DEVICE or OLD_DRIVER.
        sm: compute capability, 89 for 8.9.
        integrated: 1 if it shares the host's memory, as on a Jetson.
        multiprocessors: how many.
    """

    state: str = ""
    sm: int = 89
    name: str = "Simulated GPU"
    integrated: int = 0
    multiprocessors: int = 16

    @classmethod
    def parse(cls, text: str) -> Gpu:
        """Read "none", "old" or "sm=87,name=Orin,integrated=1".

        Raises:
            ValueError: something else.
        """
        if text in ("", NO_DEVICE, OLD_DRIVER):
            return cls(state=text)
        given = dict(part.split("=", 1) for part in text.split(","))
        name = given.pop("name", cls.name)
        if unknown := set(given) - {"sm", "integrated", "multiprocessors"}:
            raise ValueError(f"{GPU}={text}: {', '.join(sorted(unknown))} unknown; expected sm, name, integrated")
        return replace(cls(name=name), **{key: int(value) for key, value in given.items()})  # type: ignore[arg-type]


@dataclass
class Counters:
    """What a program has asked of the device since it began, or since `reset_counters`."""

    enqueues: int = 0
    graph_launches: int = 0
    captures: int = 0
    copies: int = 0
    copied_bytes: int = 0
    memsets: int = 0
    events: int = 0
    synchronizations: int = 0
    allocations: int = 0


@dataclass(eq=False)
class Device:
    """Memory, queues and handles.

    Attributes:
        lock: held during each call.
        is_no_op: engines check and take their place in the queues, but compute nothing: outputs become 0.
        libraries: plugin libraries that were loaded.
    """

    seed: int
    gpu: Gpu
    memory: Memory
    counters: Counters = field(default_factory=Counters)
    lock: threading.RLock = field(default_factory=threading.RLock)
    is_no_op: bool = False
    libraries: list[str] = field(default_factory=list)
    streams: dict[int, Lane] = field(default_factory=dict)
    events: dict[int, Event] = field(default_factory=dict)
    graphs: dict[int, Graph] = field(default_factory=dict)
    executables: dict[int, Graph] = field(default_factory=dict)
    captures: list[Capture] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(random.Random(self.seed))
        self._handle = 0x10000

    def new_handle(self) -> int:
        """A number that no other object has."""
        self._handle += 16
        return self._handle

    def stream(self, handle: object, what: str) -> Lane:
        """The stream of a handle.

        Raises:
            Misuse: the default stream, which waits for all others, or none that there is.
        """
        number = int(handle)  # type: ignore[call-overload]
        if number in (0, 1, 2):
            raise Misuse("default-stream", f"{what}: stream {number}, expected one that was created")
        if number not in self.streams:
            raise Misuse("unknown-handle", f"{what}: no stream has the handle {number:#x}; was it destroyed?")
        return self.streams[number]

    def event(self, handle: object, what: str) -> Event:
        """The event of a handle; Misuse if there is none."""
        number = int(handle)  # type: ignore[call-overload]
        if number not in self.events:
            raise Misuse("unknown-handle", f"{what}: no event has the handle {number:#x}; was it destroyed?")
        return self.events[number]


def make_device(seed: int | None = None, memory: int | None = None, gpu: str | None = None) -> Device:
    """A fresh device; None = what the environment says, else the default."""
    described = Gpu.parse(os.environ.get(GPU, "") if gpu is None else gpu)
    total = int(os.environ.get(MEMORY, DEFAULT_MEMORY)) if memory is None else memory
    return Device(
        seed=int(os.environ.get(SEED, "0")) if seed is None else seed,
        gpu=described,
        memory=Memory(total, is_shared=bool(described.integrated)),
    )


_current: list[Device] = []


def current() -> Device:
    """The device of this process."""
    if not _current:
        _current.append(make_device())
    return _current[0]


def reset(seed: int | None = None, memory: int | None = None, gpu: str | None = None) -> Device:
    """Put a fresh device in the place of the current one; nothing that was made on that may be used any more."""
    _current[:] = [make_device(seed, memory, gpu)]
    return _current[0]
