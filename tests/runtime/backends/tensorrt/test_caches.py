# SPDX-License-Identifier: Apache-2.0
"""Caches on the device: what is used again, what is freed, and rows that move to greater ones."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest

from fastmmoe.runtime.backends.tensorrt.caches import MOST_IDLE, SLOTS, CachePool, DeviceCaches, Storage, copy_caches
from fastmmoe.runtime.backends.tensorrt.device import OutOfDeviceMemory
from fastmmoe.runtime.backends.tensorrt.memory import Layout, host_view
from fastmmoe.runtime.types import Array
from tests.support.double import Double
from tests.support.toy_engines import Gpu, gpu_of

STATE = Layout.of({"ids": 8, "lengths": 8})
FOLLOWING = 256
Shapes = dict[str, tuple[tuple[int, ...], str]]


def shapes_of(capacity: int, sequences: int = 2) -> Shapes:
    return {
        "key": ((sequences, 3, capacity, 4), "float16"),
        "positions": ((sequences, capacity), "int32"),
        "latent": ((sequences, 1, 2 * capacity, 5), "bfloat16"),
    }


def pool_of(gpu: Gpu) -> CachePool:
    return CachePool(gpu.device, gpu.stream, STATE, FOLLOWING)


@pytest.fixture
def pool(gpu: Gpu) -> CachePool:
    return pool_of(gpu)


def test_a_storage_has_a_place_for_everything(pool: CachePool, gpu: Gpu) -> None:
    storage = pool.take(2, shapes_of(8))
    sizes = {"key": 2 * 3 * 8 * 4 * 2, "positions": 2 * 8 * 4, "latent": 2 * 16 * 5 * 2}
    places = Layout.of(sizes)
    assert storage.addresses() == places.at(storage.block)
    assert {name: (shape, dtype) for name, (shape, dtype, _) in storage.tensors.items()} == shapes_of(8)
    assert (storage.state, storage.following) == (
        storage.block + places.size,
        storage.block + places.size + STATE.size,
    )
    assert storage.bytes == places.size + STATE.size + FOLLOWING
    assert (storage.ring_bytes, len(storage.read), storage.graphs) == (256, SLOTS, {})
    # To the last byte.
    gpu.write(storage.block + storage.bytes - 1, np.zeros(1, np.uint8))
    host_view(storage.ring, SLOTS * storage.ring_bytes)[:] = 0


def test_tokens_are_in_the_slots(pool: CachePool) -> None:
    storage = pool.take(2, shapes_of(8))
    for slot in range(SLOTS):
        host_view(storage.ring + slot * storage.ring_bytes, 8).view(np.int32)[:] = [slot, -1]
    assert [slot.tolist() for slot in storage.tokens] == [[slot, -1] for slot in range(SLOTS)]
    assert {slot.dtype for slot in storage.tokens} == {np.dtype(np.int32)}


def test_what_is_free_is_taken_again(pool: CachePool, gpu: Gpu) -> None:
    """By caches of the same sequences and capacities only."""
    storage = pool.take(2, shapes_of(8))
    pool.give(storage)
    others = [pool.take(1, shapes_of(8, 1)), pool.take(2, shapes_of(16))]
    assert storage.block not in [other.block for other in others]
    before = gpu.modules.control.counters().allocations
    assert pool.take(2, shapes_of(8)) is storage
    assert gpu.modules.control.counters().allocations == before
    assert pool.take(2, shapes_of(8)) is not storage


def test_one_capacity_alone_makes_another_cache(pool: CachePool) -> None:
    shapes = shapes_of(8)
    pool.give(pool.take(2, shapes))
    for name in shapes:
        taken = pool.take(2, shapes | {name: shapes_of(16)[name]})
        assert taken.tensors[name][0] == shapes_of(16)[name][0]


def test_caches_that_nobody_has_are_free(pool: CachePool) -> None:
    caches = DeviceCaches(pool, pool.take(2, shapes_of(8)))
    storage = caches.storage
    del caches
    gc.collect()
    again = DeviceCaches(pool, pool.take(2, shapes_of(8)))
    assert again.storage is storage
    del again
    gc.collect()
    assert pool.take(2, shapes_of(8)) is storage and pool.take(2, shapes_of(8)) is not storage


def test_so_many_are_kept(pool: CachePool, gpu: Gpu) -> None:
    """Those that were given back first go first, with their graphs: one is made where four are free."""
    storages = [pool.take(2, shapes_of(8 * n)) for n in range(1, MOST_IDLE + 2)]
    with gpu.device.capturing(gpu.stream) as graphs:
        gpu.device.copy(storages[1].state, storages[1].following, 8, gpu.stream)
    storages[1].graphs[1] = graphs[0]
    gpu.device.launch(graphs[0], gpu.stream)
    for storage in (storages[1], storages[0], *storages[2:]):
        pool.give(storage)
    device, _ = gpu.modules.control.live()
    assert device.allocations == MOST_IDLE + 1
    pool.take(1, shapes_of(8, 1))
    assert device.allocations == MOST_IDLE and gpu.modules.control.current().executables == {}
    # Five were free: two of them went.
    assert [pool.take(2, shapes_of(8 * n)) is storages[n - 1] for n in (3, 4, 5, 1, 2)] == [True] * 3 + [False] * 2


def test_what_is_kept_makes_room(double: Double) -> None:
    """Where memory is short; and without it, the error is CUDA's, and what is in use stays."""
    shapes = shapes_of(1024)
    gpu = gpu_of(double.modules(memory=160_000))
    pool = pool_of(gpu)
    used, free = pool.take(2, shapes_of(512)), pool.take(2, shapes_of(256))
    pool.give(free)
    bigger = pool.take(2, shapes)
    assert used.block != bigger.block
    assert gpu.modules.control.live()[0].allocations == 2
    with pytest.raises(OutOfDeviceMemory, match=r"^CUDA: cudaMalloc of 0\.1 MB: out of memory$"):
        pool.take(2, shapes)
    pool.give(bigger)
    pool.close()
    assert gpu.live_bytes() == (0, 0)
    sim = gpu.modules.control.current()
    assert (sim.events, sim.executables) == ({}, {})


@pytest.mark.parametrize(("call", "which"), [("cudaHostAlloc", 1), *(("cudaEventCreateWithFlags", n) for n in (1, 2))])
def test_a_failure_leaves_nothing(
    call: str, which: int, pool: CachePool, gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda, calls = gpu.modules.cudart, []
    real = getattr(cuda, call)

    def fail(*arguments: Any) -> Any:
        calls.append(arguments)
        return (cuda.cudaError_t.cudaErrorMemoryAllocation, None) if len(calls) >= which else real(*arguments)

    monkeypatch.setattr(cuda, call, fail)
    with pytest.raises(OutOfDeviceMemory, match=f"^CUDA: {call}"):
        pool.take(2, shapes_of(8))
    assert gpu.live_bytes() == (0, 0) and gpu.modules.control.current().events == {}


def fill(gpu: Gpu, storage: Storage) -> dict[str, Array]:
    """Values of every cache, which the device then has."""
    rng, found = np.random.default_rng(0), {}
    for name, (shape, dtype, address) in storage.tensors.items():
        of_elements = {"bfloat16": "uint16", "float16": "uint16"}.get(dtype, dtype)
        found[name] = rng.integers(0, 1 << 16, shape).astype(of_elements)
        gpu.write(address, found[name])
    return found


def test_all_rows_move_to_greater_caches(gpu: Gpu, pool: CachePool) -> None:
    """[B, N, C, D] and [B, C]: each sequence and head from its row 0 on, and no more is touched."""
    small, large = pool.take(2, shapes_of(8)), pool.take(2, shapes_of(24))
    rows, before = fill(gpu, small), fill(gpu, large)
    copy_caches(gpu.device, large, small, gpu.stream)
    for name, (shape, _, address) in large.tensors.items():
        expected, axis = before[name], 2 if len(shape) > 2 else 1
        expected[(slice(None),) * axis + (slice(rows[name].shape[axis]),)] = rows[name]
        found = gpu.read(address, expected.nbytes).view(expected.dtype).reshape(shape)
        assert np.array_equal(found, expected), name


def test_groups_that_do_not_grow_move_as_they_are(gpu: Gpu, pool: CachePool) -> None:
    shapes = shapes_of(8)
    small, large = pool.take(2, shapes), pool.take(2, shapes | {"key": shapes_of(16)["key"]})
    rows = fill(gpu, small)
    copy_caches(gpu.device, large, small, gpu.stream)
    _, _, address = large.tensors["latent"]
    assert gpu.read(address, rows["latent"].nbytes).tobytes() == rows["latent"].tobytes()
