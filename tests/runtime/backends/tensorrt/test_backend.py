# SPDX-License-Identifier: Apache-2.0
"""The backend over engines of a few nodes; whole models run in tests/end_to_end/test_engine_runs.py."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmmoe.runtime.backends.base import Timed
from fastmmoe.runtime.backends.batch import Batch
from fastmmoe.runtime.backends.rows import PromptRows
from fastmmoe.runtime.backends.tensorrt.backend import TensorRT
from fastmmoe.runtime.backends.tensorrt.device import OutOfDeviceMemory
from fastmmoe.runtime.backends.tensorrt.loading import load_engines
from fastmmoe.runtime.backends.tensorrt.memory import host_view
from fastmmoe.runtime.errors import InvalidRequest, RunFailed
from fastmmoe.runtime.method.call import Chunk
from fastmmoe.runtime.method.schedule import plan_request
from fastmmoe.runtime.types import Array
from tests.support.double import Double, Modules
from tests.support.toy_engines import EXPERT_SUM, embedding_table, graph_model, load_toy, write_engine_bundle

SCHEDULES = 10


class Case:
    """A backend on the double."""

    def __init__(self, modules: Modules, directory: Path) -> None:
        self.modules = modules
        self.backend: TensorRT = load_toy(directory, modules)

    def chunk(self, sequence: int, ids: Sequence[int], visual: Sequence[int] = (), features: Any = None) -> Chunk:
        """Rows of a sequence, of which these are visual."""
        info, index = self.backend.info, np.array(visual, np.int32)
        schedule = plan_request(
            self.backend.policy, visual_tokens=len(visual), moe_layers=info.moe_layers, top_k=info.top_k
        )
        return Chunk(sequence, self.backend.embed(np.array(ids), index, features), index, schedule)

    def features(self, value: float, visual: int) -> Any:
        """Of a picture: row r is r + value."""
        pixels = np.full((1, 3, 16, 16), value, np.float32)
        return self.backend.image_features({"pixel_values": pixels, "layout_index": np.arange(visual)})

    def embeds(self, rows: int) -> Array:
        """What the language model was given last, float16 [rows, 8]."""
        own = self.backend._own
        return own.results.fetch([("rows", own.embeds, (rows, 8), "float16")], own.stream)["rows"]

    def live_bytes(self) -> tuple[int, int]:
        device, pinned = self.modules.control.live()
        return device.bytes, pinned.bytes


@pytest.fixture
def make(double: Double, tmp_path: Path) -> Callable[..., Case]:
    return lambda **settings: Case(double.modules(**settings), tmp_path / f"bundle{settings.get('seed', '')}")


@pytest.fixture
def case(make: Callable[..., Case]) -> Case:
    return make()


def test_prompts_are_ids_until_they_are_used(case: Case) -> None:
    before = case.modules.control.counters().enqueues
    rows = case.backend.embed(np.array([4, 9, 2]))
    assert isinstance(rows, PromptRows) and len(rows) == 3 and rows.input_ids.dtype == np.int32
    assert case.modules.control.counters().enqueues == before


def test_logits_of_the_last_rows(case: Case) -> None:
    """With the experts that were read from the file. Two sequences of one call."""
    batch = Batch(case.backend, 2)
    logits = batch.extend([case.chunk(1, [1, 2, 3]), case.chunk(0, [5])], alpha=0.3)
    assert logits.shape == (2, 10) and logits.dtype == np.float32
    assert logits.argmax(1).tolist() == [6, 8]
    assert np.allclose(logits.max(1), EXPERT_SUM + 1, atol=1e-2)
    assert np.array_equal(case.embeds(4), embedding_table(case.backend.manifest)[[1, 2, 3, 5]])
    assert batch.lengths == [1, 3]
    next_ids = batch.extend([case.chunk(1, [6]), case.chunk(0, [8])], alpha=0.3, result="next_ids")
    assert next_ids.tolist() == [9, 1] and next_ids.dtype == np.int32


def test_what_is_not_wanted_is_not_copied(case: Case) -> None:
    batch = Batch(case.backend)
    batch.extend([case.chunk(0, [1])], alpha=0.3)
    case.modules.control.reset_counters()
    batch.extend([case.chunk(0, [1])], alpha=0.3, result="next_ids")
    # One upload; the token, and kept_index of two sites.
    assert case.modules.control.counters().copies == 4


def test_single_tokens_are_decode_steps(case: Case) -> None:
    """Of one sequence or more; a longer call or one with pictures is none."""
    used: list[str] = []
    own = case.backend._own
    for name in ("prefill", "decode"):
        context = getattr(own, name)
        real = context.run

        def run(*arguments: Any, name: str = name, real: Any = real) -> None:
            used.append(name)
            real(*arguments)

        context.run = run
    batch = Batch(case.backend, 2)
    batch.extend([case.chunk(0, [1, 2]), case.chunk(1, [1])], alpha=0.3)
    batch.extend([case.chunk(0, [1]), case.chunk(1, [1])], alpha=0.3)
    batch.extend([case.chunk(1, [1])], alpha=0.3)
    batch.extend([case.chunk(1, [9], [0], case.features(0.5, 1))], alpha=0.3)
    assert used == ["prefill", "decode", "decode", "prefill"]


def test_features_take_the_place_of_visual_tokens(make: Callable[..., Case]) -> None:
    """Of two prompts in one call, in runs of neighbours, in every schedule."""
    for seed in range(SCHEDULES):
        case = make(seed=seed)
        table = embedding_table(case.backend.manifest)
        first = case.chunk(0, [1, 9, 9, 2, 9, 3], [1, 2, 4], case.features(0.5, 3))
        second = case.chunk(1, [9, 4], [0], case.features(-7, 1))
        batch = Batch(case.backend, 2)
        batch.extend([first, second], alpha=0.3)
        expected = table[[1, 9, 9, 2, 9, 3, 9, 4]].copy()
        expected[[1, 2, 4]] = (np.arange(3) + 0.5)[:, None]
        expected[6] = -7
        assert np.array_equal(case.embeds(8), expected), seed
        # The next picture in this memory has to wait for that.
        assert first.inputs_embeds.features.block.was_read and second.inputs_embeds.features.block.was_read
        del first, second, batch
        gc.collect()
        case.backend.close()
        assert case.live_bytes() == (0, 0)


def test_pictures_are_computed_while_the_host_goes_on(case: Case) -> None:
    case.modules.control.reset_counters()
    features = case.features(0.5, 3)
    assert case.modules.control.counters().synchronizations == 0
    assert len(features) == 3
    assert isinstance(features, Timed) and features.elapsed_ms() >= 0


@pytest.mark.parametrize("rows", [0, 2])
def test_features_that_do_not_fit_the_prompt(rows: int, case: Case) -> None:
    chunk = case.chunk(0, [9, 1], [0], case.features(0.5, rows) if rows else case.features(0.5, 1))
    if not rows:
        chunk.inputs_embeds.features._rows = 0
    with pytest.raises(RunFailed, match=rf"^{rows} rows of features for 1 visual tokens$"):
        Batch(case.backend).extend([chunk], alpha=0.3)


def test_what_engines_do_not_take(case: Case) -> None:
    """Each part is checked before anything is queued."""
    batch = Batch(case.backend, 2)
    case.modules.control.reset_counters()
    with pytest.raises(InvalidRequest, match=r"^25 tokens of one call: the engines take 24; build them for more: "):
        batch.extend([case.chunk(0, [1] * 25)], alpha=0.3)
    with pytest.raises(InvalidRequest, match=r"^3 sequences at once: the engines take 2; "):
        Batch(case.backend, 3).extend([case.chunk(0, [1])], alpha=0.3)
    with pytest.raises(InvalidRequest, match=r"^13 visual tokens: the engines take 12; "):
        case.features(0.5, 13)
    assert case.backend.longest == 64
    with pytest.raises(InvalidRequest, match=r"has 65 tokens"):
        batch.extend([case.chunk(0, [1] * 65)], alpha=0.3)
    assert case.modules.control.counters().enqueues == 0


def test_decode_checks_its_inputs_at_once(case: Case) -> None:
    """And not when the first token is read."""
    feeds, _ = Batch(case.backend, 2).prepare([case.chunk(0, [1]), case.chunk(1, [1])], alpha=0.3)
    feeds["past_lengths.0"] = np.zeros(3, np.int32)
    with pytest.raises(InvalidRequest, match=r"^past_lengths\.0 is \[3\], the engines take up to \[2\]: "):
        case.backend.decode(feeds, case.backend.new_caches(2, [256] * 3), 3)


def test_features_that_do_not_fit(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = case.modules.cudart
    with monkeypatch.context() as patch:
        patch.setattr(cuda, "cudaMalloc", lambda *_: (cuda.cudaError_t.cudaErrorMemoryAllocation, None))
        with pytest.raises(OutOfDeviceMemory, match=r"^features of pictures, 0\.0 MB, do not fit on .*--max-tiles"):
            case.features(1, 2)
    assert len(case.features(1, 2)) == 2


def test_a_closed_model_refuses_everything(case: Case) -> None:
    """In one line each, where memory that is gone would end the process; features and caches may outlive it."""
    backend, features, batch = case.backend, case.features(3, 2), Batch(case.backend)
    batch.extend([case.chunk(0, [1, 2])], alpha=0.3)
    steps = batch.decode([case.chunk(0, [3])], alpha=0.3, steps=4)
    assert steps is not None and len(next(steps)) == 1
    backend.close()
    backend.close()
    for use in (
        lambda: next(steps),
        features.elapsed_ms,
        lambda: case.features(1, 2),
        lambda: batch.extend([case.chunk(0, [1])], alpha=0.3),
        lambda: next(batch.decode([case.chunk(0, [1])], alpha=0.3, steps=2) or iter(())),
        lambda: Batch(backend).extend([case.chunk(0, [1])], alpha=0.3),
    ):
        with pytest.raises(InvalidRequest, match=r"^the model has been closed: load the bundle again$"):
            use()
    assert case.live_bytes() == (0, 0)


def test_closing_waits_for_a_token_that_is_being_read(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    backend, batch = case.backend, Batch(case.backend)
    batch.extend([case.chunk(0, [1, 2])], alpha=0.3)
    closing = threading.Thread(target=backend.close)
    wait, is_freed = backend._own.device.wait_on_host, []

    def close_meanwhile(event: Any) -> None:
        if not closing.ident:
            closing.start()
            closing.join(0.2)
            is_freed.append(case.live_bytes() == (0, 0))
        wait(event)

    steps = batch.decode([case.chunk(0, [3])], alpha=0.3, steps=4)
    assert steps is not None
    next(steps)
    monkeypatch.setattr(backend._own.device, "wait_on_host", close_meanwhile)
    assert len(next(steps)) == 1 and is_freed == [False]
    closing.join()
    with pytest.raises(InvalidRequest, match="has been closed"):
        next(steps)
    assert case.live_bytes() == (0, 0)


def test_a_model_that_nobody_has_is_given_back_at_once(case: Case) -> None:
    """Not when Python next looks for cycles: another model may need the memory. Steps keep theirs."""
    gc.collect()
    gc.disable()
    try:
        batch = Batch(case.backend)
        batch.extend([case.chunk(0, [1, 2])], alpha=0.3)
        steps = batch.decode([case.chunk(0, [3])], alpha=0.3, steps=4)
        assert steps is not None
        next(steps)
        del case.backend, batch
        assert len(next(steps)) == 1
        del steps
        assert case.live_bytes() == (0, 0)
    finally:
        gc.enable()


def test_greater_caches_begin_with_the_rows_of_those_before(case: Case) -> None:
    """Whose memory serves others once nobody has them.

    The engines of this bundle take one capacity, the copy takes any.
    """
    backend, own = case.backend, case.backend._own
    backend._limits.check_caches = lambda *_: None  # type: ignore[method-assign]
    before = backend.new_caches(2, [256, 256, 256])
    storage = before.storage
    shape, dtype, address = storage.tensors["past_key_values.3.value"]
    values = np.random.default_rng(0).random(shape).astype(dtype)
    pinned = own.device.allocate_pinned(values.nbytes)
    host_view(pinned, values.nbytes)[:] = values.reshape(-1).view(np.uint8)
    own.device.copy(address, pinned, values.nbytes, own.stream)
    after = backend.new_caches(2, [256, 256, 512], before)
    # Ctrl-C may come before the batch has the new ones.
    others = backend.new_caches(2, [256, 256, 256])
    assert others.storage is not storage
    del before
    assert backend.new_caches(2, [256, 256, 256]).storage is storage
    shape, dtype, address = after.storage.tensors["past_key_values.3.value"]
    assert shape == (2, 2, 512, 6)
    pitch = 512 * 6 * 2
    for row in range(4):
        own.device.copy(pinned + row * 256 * 12, address + row * pitch, 256 * 12, own.stream)
    own.device.synchronize(own.stream)
    assert host_view(pinned, values.nbytes).tobytes() == values.tobytes()


def test_caches_that_do_not_fit(case: Case) -> None:
    """One line with sizes and what to do; caches that nobody has are freed first."""
    device, _ = case.modules.control.live()
    one = case.backend.new_caches(1, [256] * 3)
    case.modules.control.current().memory.total = device.bytes + 1024
    words = (
        r"^key-value caches of 0\.1 MB do not fit, 0\.0 MB are free on the device: ask for fewer new tokens, a lower "
        r"retention or fewer sequences at once, or end other programs \(CUDA: cudaMalloc of 0\.1 MB: out of memory\)$"
    )
    with pytest.raises(OutOfDeviceMemory, match=words):
        case.backend.new_caches(2, [256] * 3)
    del one
    gc.collect()
    case.modules.control.current().memory.total = device.bytes + 70_000
    assert len(case.backend.new_caches(2, [256] * 3).storage.tensors) == 8


def test_everything_is_given_back(case: Case) -> None:
    batch, features = Batch(case.backend), case.features(0.5, 2)
    batch.extend([case.chunk(0, [1, 9], [1], case.features(0.5, 1))], alpha=0.3)
    steps = batch.decode([case.chunk(0, [4])], alpha=0.3, steps=5)
    assert steps is not None and [next(steps).tolist() for _ in range(2)] == [[7], [0]]
    # Somebody has caches, features and steps yet.
    case.backend.close()
    sim = case.modules.control.current()
    assert case.live_bytes() == (0, 0)
    assert (sim.streams, sim.events, sim.graphs, sim.executables) == ({}, {}, {}, {})
    steps.close()
    del batch, features
    gc.collect()
    assert case.live_bytes() == (0, 0)


def test_layers_are_timed_call_by_call(double: Double, tmp_path: Path) -> None:
    """Of each graph, in the order of the calls, whichever context ran them; steps are calls of their own then."""
    modules = double.modules()
    directory = tmp_path / "bundle"
    manifest = write_engine_bundle(directory, modules.trt)
    case = Case.__new__(Case)
    case.modules, case.backend = modules, load_engines(directory, manifest, notes_times=True)
    batch = Batch(case.backend)
    batch.extend([case.chunk(0, [1, 9, 9], [1, 2], case.features(0.5, 2))], alpha=0.3)
    assert batch.decode([case.chunk(0, [1])], alpha=0.3, steps=4) is None
    batch.extend([case.chunk(0, [1])], alpha=0.3)
    found = case.backend.end_profiling()
    assert {graph: len(calls) for graph, calls in found.items()} == {"vision": 1, "embedding": 2, "language_model": 2}
    for graph, calls in found.items():
        names = [node.name for node in graph_model(manifest, graph).graph.node]
        assert all([node.name for node in call] == names and {node.ms for node in call} == {0.25} for call in calls)
    case.backend.close()


def test_no_times_are_noted_unasked(case: Case) -> None:
    Batch(case.backend).extend([case.chunk(0, [1])], alpha=0.3)
    assert not any(case.backend.end_profiling().values())
