# SPDX-License-Identifier: Apache-2.0
"""Which requests are run, in which order, and what is kept of them; on a backend that computes nothing."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from fastmmoe.runtime.bench.measuring import FRAME, Bench, draw_picture, lengthened
from fastmmoe.runtime.bench.settings import BenchOptions, Setting
from fastmmoe.runtime.bundle import graph_io
from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.request.inputs import ModelInputs
from fastmmoe.runtime.types import Array
from fastmmoe.runtime.vlm import VLM
from tests.support.echo import Echo, echo_vlm, scores_of
from tests.support.processors import MakeProcessor


class Joules:
    """A meter that counts its readings."""

    source = "made"

    def __init__(self) -> None:
        self.count = 0.0

    def joules(self) -> float:
        self.count += 1.0
        return self.count**2

    def close(self) -> None:
        pass


@pytest.fixture
def echo(processor: MakeProcessor) -> tuple[VLM, Echo]:
    return echo_vlm(processor("dsvl2-mha"))


def test_a_request_decodes_as_many_tokens_as_it_is_to(echo: tuple[VLM, Echo]) -> None:
    """Though the first token ends answers."""
    vlm, backend = echo
    (stop, *_) = vlm.processor.config.stop_token_ids
    backend.info = replace(backend.info, vocab_size=vlm.processor.config.vocab_size)
    backend.logits = scores_of(stop, vocab_size=backend.info.vocab_size)
    (found,) = Bench(vlm, BenchOptions((0.5,), repetitions=1, warmup=0, new_tokens=5)).run()
    (request,) = found.requests
    assert len(backend.calls) == 5 and len(request.steps_ms) == 4
    assert request.stats.retention == 0.5 and request.stats.tiles > 0
    parts = request.preprocess_ms + request.vision_ms + request.prefill_ms + sum(request.steps_ms)
    assert 0 < parts <= request.whole_ms <= found.wall_ms
    assert found.joules is None


def test_repetitions_take_turns_and_begin_with_another_setting(echo: tuple[VLM, Echo]) -> None:
    vlm, backend = echo
    said: list[str] = []
    options = BenchOptions((1.0, 0.5, 0.25), repetitions=4, warmup=2, new_tokens=2)
    rounds = Bench(vlm, options, say=said.append).run()
    order = [one.setting.retention for one in rounds]
    assert order == [1.0, 0.5, 0.25, 0.5, 0.25, 1.0, 0.25, 1.0, 0.5, 1.0, 0.5, 0.25]
    assert len(backend.pictures) == 3 * (2 + 4)
    assert said == [f"warm-up {n} of 2" for n in (1, 2)] + [f"repetition {n} of 4" for n in (1, 2, 3, 4)]
    starts = [one.requests[0].start_ms for one in rounds]
    assert starts == sorted(starts) and starts[0] >= 0


def test_a_batch_is_one_call(echo: tuple[VLM, Echo]) -> None:
    vlm, backend = echo
    rounds = Bench(vlm, BenchOptions((0.5,), batches=(1, 3), repetitions=1, warmup=0, new_tokens=3)).run()
    by_batch = {one.setting.batch: one.requests for one in rounds}
    assert set(by_batch) == {1, 3}
    sizes = [len(call[graph_io.SEQUENCE_OFFSETS]) - 1 for call in backend.calls]
    assert sorted(sizes) == [1, 1, 1, 3, 3, 3]
    assert len(by_batch[3]) == 1 and len(by_batch[3][0].steps_ms) == 2


def test_requests_at_once_have_a_thread_each(echo: tuple[VLM, Echo]) -> None:
    vlm, backend = echo
    threads = set()

    def seen(_: object) -> Array:
        threads.add(threading.get_ident())
        return np.full(1, 0.5, np.float32)

    backend.logits = seen
    meter = Joules()
    options = BenchOptions((0.5,), concurrencies=(3,), repetitions=1, warmup=0, new_tokens=2)
    found = next(one for one in Bench(vlm, options, meter).run() if one.setting.concurrency == 3)
    assert len(found.requests) == 3 and found.wall_ms >= max(one.whole_ms for one in found.requests) * 0.9
    # The one that ran alone was in the main thread.
    assert len(threads - {threading.get_ident()}) >= 1
    assert found.joules is not None and found.joules > 0


def test_energy_is_that_of_the_round(echo: tuple[VLM, Echo]) -> None:
    rounds = Bench(echo[0], BenchOptions((0.5,), repetitions=2, warmup=1, new_tokens=2), Joules()).run()
    # Squares of 3 and 4, 5 and 6: those of the warm-up are not there.
    assert [one.joules for one in rounds] == [7.0, 11.0]


def test_depth_makes_the_prompt_longer(echo: tuple[VLM, Echo]) -> None:
    vlm, _ = echo
    own = len(Bench(vlm, BenchOptions()).prompt.input_ids)
    rounds = Bench(vlm, BenchOptions((1.0,), (own, own + 40), repetitions=1, warmup=0, new_tokens=2)).run()
    tokens = [one.requests[0].stats.text_tokens + one.requests[0].stats.visual_tokens for one in rounds]
    assert tokens == [own, own + 40]
    assert rounds[0].requests[0].stats.visual_tokens == rounds[1].requests[0].stats.visual_tokens


def test_text_is_what_is_repeated() -> None:
    inputs = ModelInputs(np.array([5, 9, 9, 6, 7], np.int32), np.array([1, 2], np.int32), {})
    longer = lengthened(inputs, 10)
    assert longer.input_ids.tolist() == [5, 9, 9, 6, 7, 5, 6, 7, 5, 6] and longer.input_ids.dtype == np.int32
    assert lengthened(inputs, None) is inputs and lengthened(inputs, 5) is inputs


def test_a_prompt_that_is_longer_already(echo: tuple[VLM, Echo]) -> None:
    with pytest.raises(
        InvalidRequest, match=r"^--depth 3: the prompt has [\d,]+ tokens as it is; give as many or more$"
    ):
        Bench(echo[0], BenchOptions((1.0,), (3,))).run()


def test_no_room_for_the_answer(echo: tuple[VLM, Echo]) -> None:
    vlm, backend = echo
    backend.longest = 2000
    said = r"^a prompt of 1,980 tokens and 22 new ones: the model takes 2,000 positions; lower --depth, --new-tokens"
    with pytest.raises(InvalidRequest, match=said):
        Bench(vlm, BenchOptions((1.0,), (1980,), new_tokens=22)).run()
    Bench(vlm, BenchOptions((1.0,), (1980,), new_tokens=21, repetitions=1, warmup=0)).run()


def test_the_drawn_picture_is_a_cameras_frame() -> None:
    picture: Any = draw_picture()
    assert picture.shape == (FRAME[1], FRAME[0], 3) and picture.dtype == np.uint8 and picture.std() > 5
    assert (picture == draw_picture()).all()


def test_settings_are_what_they_are_named_by(echo: tuple[VLM, Echo]) -> None:
    (one,) = Bench(echo[0], BenchOptions((0.25,), repetitions=1, warmup=0, new_tokens=2)).run()
    assert one.setting == Setting(0.25)
