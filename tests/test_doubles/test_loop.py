# SPDX-License-Identifier: Apache-2.0
"""A decode loop on the double: right in every schedule, and each planted mistake caught."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
from collections.abc import Callable

import pytest

from tests.support.double import Double
from tests.support.double_loop import ALIASES, FIRST_TOKEN, Loop, reference

SCHEDULES = 30
LEAST_CAUGHT = 28


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> list[int]:
    return reference(tmp_path_factory.mktemp("loop"))


@pytest.mark.parametrize("uses_graph", [False, True])
def test_is_right_in_every_schedule(double: Double, tokens: list[int], uses_graph: bool) -> None:
    for seed in range(SCHEDULES):
        assert Loop(double.modules(seed=seed), uses_graph=uses_graph).run() == tokens, seed
    assert len(set(tokens)) > 2


class AliasElsewhere(Loop):
    def begin(self) -> None:
        super().begin()
        self.context.set_tensor_address("present.key", self.cuda.Malloc(self.bytes_of("present.key")))


class NotCleared(Loop):
    def clear(self) -> None:
        pass


class StagingReused(Loop):
    def begin(self) -> None:
        self.clear()
        self.send(0, FIRST_TOKEN, "id")
        self.send(0, 0, "at")


class ReaderDoesNotWait(Loop):
    def reader_waits(self) -> None:
        pass


class WriterDoesNotWait(Loop):
    def writer_waits(self) -> None:
        pass


class HostDoesNotWait(Loop):
    def finish(self) -> None:
        pass


class FreedWhileQueued(Loop):
    def steps(self) -> None:
        super().steps()
        self.cuda.Free(self.memory["past.key"])


class CapturedAddressFreed(Loop):
    def steps(self) -> None:
        graph = self.capture()
        self.cuda.StreamSynchronize(self.stream)
        self.cuda.Free(self.memory["past.key"])
        self.cuda.GraphLaunch(graph, self.stream)


class Misaligned(Loop):
    def begin(self) -> None:
        super().begin()
        self.context.set_tensor_address("logits", self.memory["logits"] + 64)


class OutOfProfile(Loop):
    def begin(self) -> None:
        super().begin()
        self.context.set_input_shape("id", (3,))


class BusyScratch(Loop):
    """A second context computes on other tensors, in another stream, with the scratch memory of the first."""

    def steps(self) -> None:
        other = self.new_context()
        for name in self.addresses:
            other.set_tensor_address(name, self.cuda.Malloc(4096))
        for output, source in ALIASES.items():
            other.set_tensor_address(output, other.get_tensor_address(source))
        self.work()
        other.execute_async_v3(self.copies)


class NoShape(Loop):
    def new_context(self) -> object:
        context = super().new_context()
        # Another profile takes the shapes away.
        context.set_optimization_profile_async(1, self.stream)
        return context


class NoAddress(Loop):
    def begin(self) -> None:
        super().begin()
        self.context.set_tensor_address("logits", 0)


class Overlap(Loop):
    def begin(self) -> None:
        super().begin()
        self.context.set_tensor_address("next_id", self.memory["id"])


class DefaultStream(Loop):
    def begin(self) -> None:
        super().begin()
        self.context.execute_async_v3(0)


class ScratchTooSmall(Loop):
    def begin(self) -> None:
        super().begin()
        self.context.set_device_memory(self.scratch, 512)


class CapturedFirst(Loop):
    def settle(self) -> None:
        pass


RULES: dict[type[Loop], str | None] = {
    AliasElsewhere: "alias-elsewhere",
    StagingReused: "host-memory-changed",
    ReaderDoesNotWait: "race",
    WriterDoesNotWait: "race",
    FreedWhileQueued: "freed-while-queued",
    CapturedAddressFreed: "freed-memory",
    Misaligned: "misaligned",
    OutOfProfile: "out-of-profile",
    BusyScratch: "busy-scratch",
    NoShape: "unset-shape",
    NoAddress: "unset-address",
    Overlap: "overlap",
    DefaultStream: "default-stream",
    ScratchTooSmall: "scratch",
    CapturedFirst: "capture-first",
}


@pytest.mark.parametrize("mistake", RULES, ids=lambda mistake: mistake.__name__)
def test_mistake_is_named(double: Double, mistake: type[Loop]) -> None:
    for seed in range(SCHEDULES):
        modules = double.modules(seed=seed)
        with pytest.raises(modules.control.Misuse) as caught:
            mistake(modules).run()
        assert caught.value.rule == RULES[mistake], seed


@pytest.mark.parametrize("mistake", [NotCleared, HostDoesNotWait], ids=lambda mistake: mistake.__name__)
def test_mistake_gives_wrong_tokens(double: Double, tokens: list[int], mistake: type[Loop]) -> None:
    right = [mistake(double.modules(seed=seed)).run() == tokens for seed in range(SCHEDULES)]
    assert right.count(False) >= LEAST_CAUGHT


@pytest.mark.parametrize("touch", [Loop.run, lambda loop: ctypes.c_int32.from_address(loop.memory["id"]).value])
def test_host_cannot_touch_device_memory(double: Double, touch: Callable[[Loop], object]) -> None:
    loop = Loop(double.modules())
    child = os.fork()
    if child == 0:
        faulthandler.disable()
        touch(loop)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    expected = 0 if touch is Loop.run else signal.SIGSEGV
    assert os.waitstatus_to_exitcode(status) == -expected
