# SPDX-License-Identifier: Apache-2.0
"""Streams, events and graphs: queues whose work happens late, in any order that their events allow."""

from __future__ import annotations

import random
import time
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from device_double.memory import Access, Region, note_writes, opened
from device_double.misuse import Misuse

Clock = Counter[int]
"""Lane -> how much of its work is known to be over (vector clock)."""

SCRATCH = "scratch memory"
"""What a context's own memory is called."""
LATENESS = (0.0, 0.25)
"""How likely some work happens before anybody waits for it; each schedule has one of them."""


@dataclass(frozen=True)
class Work:
    """Something the device does.

    Attributes:
        reads: bytes that it needs as they are when it is queued in order.
        writes: bytes that it changes.
        names: what regions are, for messages.
    """

    name: str
    reads: tuple[Region, ...]
    writes: tuple[Region, ...]
    run: Callable[[], None]
    names: Mapping[Region, str] = field(default_factory=dict)

    def call(self, region: Region) -> str:
        """The work with what a region is to it."""
        return f"{self.name} ({self.names[region]})" if region in self.names else self.name


@dataclass(eq=False)
class Event:
    """Of each time it is recorded: the clock of its stream. `captured`: of the capture it was last recorded in."""

    has_timing: bool
    recorded: int = 0
    done: int = 0
    clock: Clock = field(default_factory=Counter)
    done_at: float = 0.0
    captured: Capture | None = None


@dataclass(frozen=True)
class Record:
    """A stream reached the n-th recording of an event."""

    event: Event
    n: int


@dataclass(frozen=True)
class Wait:
    """A stream waits for the n-th recording of an event."""

    event: Event
    n: int


@dataclass(eq=False)
class Lane:
    """What happens in order: a stream, or what a launched graph does beside its stream.

    Attributes:
        clock: what is known to be over when its next work begins.
    """

    number: int
    queue: deque[Work | Record | Wait] = field(default_factory=deque)
    clock: Clock = field(default_factory=Counter)
    capture: Capture | None = None
    is_stream: bool = True

    def is_ready(self) -> bool:
        """Whether its next item may happen now."""
        head = self.queue[0] if self.queue else None
        return head is not None and not (isinstance(head, Wait) and head.event.done < head.n)


@dataclass(frozen=True)
class Node:
    """An item of a captured graph and the lane it was captured in."""

    lane: int
    item: Work | Record | Wait


@dataclass(eq=False)
class Capture:
    """What is recorded between the beginning and the end of a capture.

    Attributes:
        clocks: of each lane in it; counts its nodes.
        thread: the thread that began it.
    """

    origin: Lane
    mode: int
    thread: int
    nodes: list[Node] = field(default_factory=list)
    clocks: dict[int, Clock] = field(default_factory=dict)
    is_invalid: bool = False

    def add(self, lane: Lane, item: Work | Record | Wait) -> None:
        """Record an item."""
        self.nodes.append(Node(lane.number, item))
        self.clocks[lane.number][lane.number] += 1

    def has_unjoined_work(self) -> bool:
        """Whether some lane has work that the origin does not wait for."""
        joined = self.clocks[self.origin.number]
        return any(joined[number] < clock[number] for number, clock in self.clocks.items())


@dataclass(eq=False)
class Graph:
    """A captured graph, as it was captured or ready to launch. `finished`: its last launch."""

    nodes: tuple[Node, ...]
    origin: int
    finished: Event = field(default_factory=lambda: Event(has_timing=False))


class Scheduler:
    """All lanes of a device, and who may know that what is over.

    Args:
        rng: chooses among the legal orders.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng, self._lanes = rng, dict[int, Lane]()
        self._lateness = rng.choice(LATENESS)
        self._next = 0
        self.host: Clock = Counter()

    def new_lane(self, *, is_stream: bool = True) -> Lane:
        """An empty lane."""
        self._next += 1
        lane = self._lanes[self._next] = Lane(self._next, is_stream=is_stream)
        return lane

    def queue(self, lane: Lane, work: Work) -> None:
        """Add work to a lane, or to the graph that it captures.

        Raises:
            Misuse: other work may touch the same bytes at the same time.
        """
        if lane.capture is not None:
            lane.capture.add(lane, work)
            return
        lane.clock |= self.host
        lane.clock[lane.number] += 1
        for region in (*work.reads, *work.writes):
            if not region.block.is_live:
                raise Misuse(
                    "freed-memory", f"{work.call(region)}: {region.size} bytes at {region.start:#x} were freed"
                )
        self._check_races(lane, work)
        lane.queue.append(self._guarding_host_memory(work))
        self._run_some()

    def record(self, lane: Lane, event: Event) -> None:
        """Record an event after what is queued."""
        if lane.capture is not None:
            event.captured = lane.capture
            lane.capture.add(lane, Record(event, 0))
            event.clock = Counter(lane.capture.clocks[lane.number])
            return
        lane.clock |= self.host
        event.captured = None
        event.recorded += 1
        event.clock = Counter(lane.clock)
        lane.queue.append(Record(event, event.recorded))
        self._run_some()

    def wait(self, lane: Lane, event: Event) -> None:
        """Have what is queued next wait for an event that was recorded outside of captures."""
        lane.clock |= event.clock
        lane.queue.append(Wait(event, event.recorded))

    def join(self, lane: Lane, event: Event, capture: Capture) -> None:
        """Have a lane wait within a capture; it becomes part of it."""
        lane.capture = capture
        clock = capture.clocks.setdefault(lane.number, Counter())
        clock |= event.clock
        capture.clocks[lane.number] = clock
        capture.add(lane, Wait(event, 0))

    def launch(self, graph: Graph, lane: Lane) -> None:
        """Queue what a graph holds; its launches come one after the other."""
        self._lanes = {n: known for n, known in self._lanes.items() if known.is_stream or known.queue}
        self.wait(lane, graph.finished)
        lanes = {graph.origin: lane}
        events: dict[int, Event] = {}
        for node in graph.nodes:
            if node.lane not in lanes:
                lanes[node.lane] = self.new_lane(is_stream=False)
            target, item = lanes[node.lane], node.item
            if isinstance(item, Work):
                self.queue(target, replace(item, name=f"graph: {item.name}"))
            elif isinstance(item, Record):
                events[id(item.event)] = Event(has_timing=False)
                self.record(target, events[id(item.event)])
            else:
                self.wait(target, events[id(item.event)])
        self.record(lane, graph.finished)

    def step(self, wanted: Lane | None = None) -> bool:
        """Let one item happen, if possible of the wanted lane; whether one could."""
        ready = [lane for lane in self._lanes.values() if lane.is_ready()]
        if not ready:
            return False
        lane = wanted if wanted is not None and wanted.is_ready() else self._rng.choice(ready)
        item = lane.queue.popleft()
        if isinstance(item, Work):
            _run(item)
        elif isinstance(item, Record) and item.n > item.event.done:
            item.event.done, item.event.done_at = item.n, time.perf_counter()
        return True

    def drain(self, is_done: Callable[[], bool], wanted: Lane | None) -> None:
        """Let work happen until something is so: nothing but what it needs, or others' work besides.

        Raises:
            Misuse: it can never be.
        """
        needed = wanted if self._rng.random() < 0.5 else None
        while not is_done():
            if not self.step(needed):
                raise Misuse("deadlock", "the host waits for an event that no queued work records")

    def synchronize(self, lane: Lane) -> None:
        """Wait for all of a lane."""
        self.drain(lambda: not lane.queue, lane)
        self.host |= lane.clock

    def synchronize_event(self, event: Event) -> None:
        """Wait for the last recording of an event."""
        self.drain(lambda: event.done >= event.recorded, None)
        self.host |= event.clock

    def synchronize_all(self) -> None:
        """Wait for all that is queued."""
        while self.step():
            pass
        for lane in list(self._lanes.values()):
            self.synchronize(lane)

    def is_over(self, event: Event) -> bool:
        """Whether its last recording has happened; the device goes on meanwhile."""
        self.step()
        if event.done < event.recorded:
            return False
        self.host |= event.clock
        return True

    def pending(self) -> Iterable[Work]:
        """All work that has not happened."""
        return (item for lane in self._lanes.values() for item in lane.queue if isinstance(item, Work))

    def users_of(self, regions: Iterable[Region]) -> list[Work]:
        """Queued work that touches one of these regions."""
        wanted = list(regions)
        return [w for w in self.pending() if any(r.overlaps(s) for r in (*w.reads, *w.writes) for s in wanted)]

    def _run_some(self) -> None:
        while self._rng.random() < self._lateness and self.step():
            pass

    def _check_races(self, lane: Lane, work: Work) -> None:
        """Compare with earlier accesses that nothing orders before this work, and remember its own."""
        for regions, is_write in ((work.reads, False), (work.writes, True)):
            for region in regions:
                accesses = region.block.accesses
                accesses[:] = [a for a in accesses if self.host[a.lane] < a.time]
                for access in accesses:
                    if (
                        (is_write or access.is_write)
                        and access.lane != lane.number
                        and lane.clock[access.lane] < access.time
                        and access.start < region.end
                        and region.start < access.end
                    ):
                        how = f"{'writes' if is_write else 'reads'} what {access.name} "
                        how += "writes" if access.is_write else "reads"
                        rule = "busy-scratch" if work.names.get(region) == SCRATCH else "race"
                        raise Misuse(rule, f"{work.call(region)} {how}, and no event orders one after the other")
        for regions, is_write in ((work.reads, False), (work.writes, True)):
            for region in regions:
                made = Access(
                    region.start, region.end, is_write, lane.number, lane.clock[lane.number], work.call(region)
                )
                _remember(region.block.accesses, made)

    def _guarding_host_memory(self, work: Work) -> Work:
        """The work with a check that the host leaves alone what it reads; what it writes is poison until then.

        Bytes that other queued work touches too are left out: they may change, or are needed.
        """
        if all(region.block.is_device for region in (*work.reads, *work.writes)):
            return work
        others = list(self.pending())

        def is_alone(region: Region, what: Iterable[Region]) -> bool:
            return not region.block.is_device and not any(region.overlaps(other) for other in what)

        touched = [region for other in others for region in (*other.reads, *other.writes)]
        written = [region for other in others for region in other.writes]
        sums = {region: zlib.crc32(region.bytes()) for region in work.reads if is_alone(region, written)}
        for region in work.writes:
            if is_alone(region, (*touched, *work.reads)):
                region.poison()
        if not sums:
            return work

        def run() -> None:
            for region, before in sums.items():
                if zlib.crc32(region.bytes()) != before:
                    text = f"{work.name}: the host changed {region.size} bytes that it had yet to read"
                    raise Misuse("host-memory-changed", text)
            work.run()

        return replace(work, run=run)


def _remember(accesses: list[Access], made: Access) -> None:
    """Add an access; it takes the place of those of its own lane that it covers."""
    accesses[:] = [
        a
        for a in accesses
        if not (
            a.lane == made.lane and made.start <= a.start and a.end <= made.end and (made.is_write or not a.is_write)
        )
    ]
    accesses.append(made)


def _check_live(work: Work) -> None:
    for region in (*work.reads, *work.writes):
        if not region.block.is_live:
            raise Misuse("freed-memory", f"{work.call(region)}: {region.size} bytes at {region.start:#x} were freed")


def _run(work: Work) -> None:
    _check_live(work)
    note_writes(work.writes)
    with opened((*work.reads, *work.writes)):
        work.run()
