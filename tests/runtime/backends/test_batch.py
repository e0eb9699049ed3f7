# SPDX-License-Identifier: Apache-2.0
"""What a batch feeds a backend and the room it makes in the caches, with a backend that computes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from fastmmoe.runtime.backends.base import Steps
from fastmmoe.runtime.backends.batch import Batch, round_up
from fastmmoe.runtime.bundle import graph_io
from fastmmoe.runtime.errors import InvalidRequest, NotFinite
from fastmmoe.runtime.method.call import NO_VISUAL_TOKENS, Chunk
from fastmmoe.runtime.method.schedule import plan_request
from tests.support.echo import Echo, scores_of
from tests.support.manifests import toy_manifest


@pytest.fixture
def echo() -> Echo:
    """Four layers, of which 1 and 2 prune."""
    manifest = toy_manifest("deepseek_vl2")
    return Echo(manifest.language_model, manifest.policy)


def chunk_of(echo: Echo, sequence: int, tokens: int, visual: int) -> Chunk:
    schedule = plan_request(echo.policy, visual_tokens=visual, moe_layers=echo.info.moe_layers, top_k=echo.info.top_k)
    index = np.arange(1, 1 + visual, dtype=np.int32)
    return Chunk(sequence, np.zeros((tokens, echo.info.hidden_size), np.float32), index, schedule)


def test_lengths_follow_from_the_schedules(echo: Echo) -> None:
    batch = Batch(echo, 2)
    prompts = [chunk_of(echo, 0, 30, 20), chunk_of(echo, 1, 12, 0)]
    assert batch.extend(prompts, alpha=0.3).shape == (2, echo.info.vocab_size)
    first, second = prompts[0].schedule.keep
    assert 20 > first > second > 0
    # The layer that prunes still caches every token that enters it.
    assert batch.cache_lengths.tolist() == [[30, 30, 10 + first, 10 + second], [12] * 4]
    assert batch.lengths == [30, 12]
    # The rows of both that are left after each site.
    assert [len(kept) for kept in batch.kept_index] == [10 + first + 12, 10 + second + 12]
    assert batch.observed.keys() == {"more"}
    step = chunk_of(echo, 1, 1, 0)
    batch.extend([step], alpha=0.3)
    assert batch.lengths == [30, 13]
    assert batch.cache_lengths.tolist() == [[30, 30, 10 + first, 10 + second], [13] * 4]
    assert echo.calls[1][graph_io.POSITION_IDS].tolist() == [12]
    assert echo.calls[1][graph_io.SEQUENCE_IDS].tolist() == [1]
    assert step.visual_index.tolist() == NO_VISUAL_TOKENS.tolist()
    # Sequence 0 is not in the call; its lengths are fed all the same.
    past = [echo.calls[1][graph_io.past_lengths(g)] for g in range(3)]
    assert [one.tolist() for one in past] == [[30, 12], [10 + first, 12], [10 + second, 12]]
    assert all(one.dtype == np.int32 for one in past)


@pytest.mark.parametrize(("rows", "capacity"), [(1, 256), (255, 256), (256, 256), (257, 512), (4096, 4096)])
def test_capacities_are_multiples_of_256(rows: int, capacity: int, echo: Echo) -> None:
    assert round_up(rows) == capacity
    batch = Batch(echo)
    assert (batch.capacities, batch.caches) == ((), None)
    batch.extend([chunk_of(echo, 0, rows, 0)], alpha=0.3)
    assert batch.capacities == (capacity,) * 3 and batch.caches is echo.made[-1]


@pytest.mark.parametrize(
    ("new_tokens", "capacities"), [(6, (512, 512, 256)), (7, (512, 512, 512)), (63, (768, 512, 512))]
)
def test_a_request_gets_its_caches_once(new_tokens: int, capacities: tuple[int, ...], echo: Echo) -> None:
    """Room by group for what the sites leave of 450 rows, 332 and 250, and for all tokens to come, to the last."""
    batch = Batch(echo)
    batch.extend([chunk_of(echo, 0, 450, 400)], alpha=0.3, new_tokens=[new_tokens])
    assert batch.cache_lengths.tolist() == [[450, 450, 332, 250]]
    for _ in range(new_tokens):
        batch.extend([chunk_of(echo, 0, 1, 0)], alpha=0.3)
    assert len(echo.made) == 1 and batch.capacities == capacities
    assert echo.made[0].lengths[:, 0].tolist() == [450 + new_tokens, 332 + new_tokens, 250 + new_tokens]


def test_caches_that_a_conversation_outgrows_double(echo: Echo) -> None:
    """Or more where that is needed; each time the rows are those there were."""
    batch = Batch(echo)
    for tokens, capacity, made in ((250, 256, 1), (6, 256, 1), (1, 512, 2), (300, 1024, 3), (3000, 3584, 4)):
        batch.extend([chunk_of(echo, 0, tokens, 0)], alpha=0.3)
        assert (batch.capacities, len(echo.made)) == ((capacity,) * 3, made)
    assert [caches.is_replaced for caches in echo.made] == [True, True, True, False]
    assert batch.caches is echo.made[-1] and batch.cache_lengths.tolist() == [[3557] * 4]


def test_only_the_groups_that_are_full_grow(echo: Echo) -> None:
    """450, 332 and 250 rows, then 70 more of each."""
    batch = Batch(echo)
    batch.extend([chunk_of(echo, 0, 450, 400)], alpha=0.3)
    assert batch.capacities == (512, 512, 256)
    batch.extend([chunk_of(echo, 0, 70, 0)], alpha=0.3)
    assert batch.capacities == (1024, 512, 512) and len(echo.made) == 2


def test_room_is_for_the_longest_sequence(echo: Echo) -> None:
    """Three sequences, two of them in the call: 100 rows and 200 to come, 250 and none."""
    batch = Batch(echo, 3)
    prompts = [chunk_of(echo, 2, 100, 0), chunk_of(echo, 0, 250, 0)]
    batch.extend(prompts, alpha=0.3, new_tokens=[200, 0])
    assert batch.capacities == (512,) * 3 and echo.made[0].lengths.tolist() == [[250, 0, 100]] * 3
    batch.extend([chunk_of(echo, 1, 400, 0)], alpha=0.3)
    batch.extend([chunk_of(echo, 2, 200, 0), chunk_of(echo, 1, 1, 0)], alpha=0.3)
    assert len(echo.made) == 1
    assert batch.cache_lengths.tolist() == [[250] * 4, [401] * 4, [300] * 4]
    batch.extend([chunk_of(echo, 1, 112, 0)], alpha=0.3)
    assert batch.capacities == (1024,) * 3 and echo.made[1].lengths.tolist() == [[250, 513, 300]] * 3


def test_tokens_to_come_are_counted_where_caches_grow(echo: Echo) -> None:
    """A question that fits leaves the caches as they are; one that does not gets room for its answer, too."""
    batch = Batch(echo)
    batch.extend([chunk_of(echo, 0, 200, 0)], alpha=0.3, new_tokens=[20])
    batch.extend([chunk_of(echo, 0, 40, 0)], alpha=0.3, new_tokens=[600])
    assert (batch.capacities, len(echo.made)) == ((256,) * 3, 1)
    batch.extend([chunk_of(echo, 0, 40, 0)], alpha=0.3, new_tokens=[600])
    assert (batch.capacities, len(echo.made)) == ((1024,) * 3, 2)


@pytest.mark.parametrize(
    ("longest", "capacities"), [(700, (768, 768, 768)), (768, (768, 768, 768)), (769, (1024, 1024, 1024))]
)
def test_capacities_end_where_the_positions_do(longest: int, capacities: tuple[int, ...], echo: Echo) -> None:
    """Twice 512 is more than a sequence ever has; nor do tokens that cannot come get room."""
    echo.longest = longest
    batch = Batch(echo)
    batch.extend([chunk_of(echo, 0, 300, 0)], alpha=0.3)
    batch.extend([chunk_of(echo, 0, 300, 0)], alpha=0.3)
    assert batch.capacities == capacities
    other = Batch(echo)
    other.extend([chunk_of(echo, 0, 300, 0)], alpha=0.3, new_tokens=[5000])
    assert other.capacities == capacities
    for _ in range(longest - 600):
        batch.extend([chunk_of(echo, 0, 1, 0)], alpha=0.3)
    assert batch.lengths == [longest] and len(echo.made) == 3


def test_a_row_more_than_there_are_positions_is_refused(echo: Echo) -> None:
    """Positions count, not the rows that pruning leaves; and the batch stays as it was."""
    echo.longest = 500
    batch = Batch(echo, 2)
    batch.extend([chunk_of(echo, 1, 500, 400)], alpha=0.3)
    assert batch.cache_lengths[1].tolist() == [500, 500, 382, 300]
    with pytest.raises(InvalidRequest, match="has 501 tokens, 500 of them of earlier turns and 0 of the new"):
        batch.extend([chunk_of(echo, 1, 1, 0)], alpha=0.3)
    with pytest.raises(InvalidRequest, match="has 501 tokens, 20 of them visual: the model takes at most 500"):
        batch.extend([chunk_of(echo, 0, 501, 20)], alpha=0.3)
    assert (batch.lengths, batch.capacities, len(echo.made), len(echo.calls)) == ([0, 500], (512, 512, 512), 1, 1)
    batch.extend([chunk_of(echo, 0, 500, 0)], alpha=0.3)


def test_a_call_that_is_refused_changes_nothing(echo: Echo) -> None:
    batch = Batch(echo)
    batch.extend([chunk_of(echo, 0, 200, 0)], alpha=0.3)
    chunk = chunk_of(echo, 0, 100, 20)
    chunk.visual_index[0] = 100
    with pytest.raises(InvalidRequest, match="visual_index holds row 100"):
        batch.extend([chunk], alpha=0.3)
    assert (batch.capacities, len(echo.made), batch.lengths) == ((256,) * 3, 1, [200])


def test_caches_that_memory_does_not_hold_leave_a_batch_as_it_was(echo: Echo, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shorter question is asked of the caches there are; the long one asks for new ones again."""
    batch = Batch(echo)
    batch.extend([chunk_of(echo, 0, 200, 0)], alpha=0.3)

    def no_memory(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(Echo, "new_caches", no_memory)
        with pytest.raises(MemoryError):
            batch.extend([chunk_of(echo, 0, 300, 0)], alpha=0.3)
        assert (batch.capacities, batch.lengths, batch.caches) == ((256,) * 3, [200], echo.made[0])
        batch.extend([chunk_of(echo, 0, 56, 0)], alpha=0.3)
        with pytest.raises(MemoryError):
            batch.extend([chunk_of(echo, 0, 1, 0)], alpha=0.3)
    batch.extend([chunk_of(echo, 0, 300, 0)], alpha=0.3)
    assert (batch.capacities, len(echo.made)) == ((768,) * 3, 2)


def test_logits_that_are_no_numbers_are_refused(echo: Echo) -> None:
    echo.logits = np.nan
    with pytest.raises(NotFinite, match="the language model computed them"):
        Batch(echo).extend([chunk_of(echo, 0, 5, 2)], alpha=0.3)


def test_a_backend_without_steps_of_its_own(echo: Echo) -> None:
    """Nothing counts as cached; the room is there already."""
    batch = Batch(echo, 2)
    batch.extend([chunk_of(echo, 0, 250, 0)], alpha=0.3)
    assert batch.decode([chunk_of(echo, 0, 1, 0)], alpha=0.3, steps=7) is None
    assert (batch.lengths, batch.capacities, len(echo.calls)) == ([250, 0], (512,) * 3, 1)


def stepping(echo: Echo, *lengths: int) -> Batch:
    """A batch of sequences of these lengths, whose backend runs steps ahead."""
    echo.steps_ahead = True
    batch = Batch(echo, len(lengths))
    batch.extend([chunk_of(echo, i, length, 0) for i, length in enumerate(lengths)], alpha=0.3)
    return batch


def test_steps_are_counted_as_they_are_read(echo: Echo) -> None:
    """Of the sequences of the call alone."""
    batch = stepping(echo, 30, 12, 7)
    scores = scores_of(4, 6, vocab_size=echo.info.vocab_size)
    echo.logits = lambda _: scores
    steps = batch.decode([chunk_of(echo, 2, 1, 0), chunk_of(echo, 0, 1, 0)], alpha=0.3, steps=3)
    assert steps is not None and batch.lengths == [30, 12, 7]
    for count in (1, 2, 3):
        assert next(steps).tolist() == [4, 6]
        assert batch.lengths == [30 + count, 12, 7 + count]
        assert batch.cache_lengths.tolist() == [[30 + count] * 4, [12] * 4, [7 + count] * 4]
    assert next(steps, None) is None and len(echo.calls) == 4
    assert echo.calls[1][graph_io.SEQUENCE_IDS].tolist() == [2, 0]
    assert echo.calls[1][graph_io.POSITION_IDS].tolist() == [7, 30]


def test_what_is_not_read_does_not_count(echo: Echo) -> None:
    """To leave the steps is to close those of the backend; the next call goes on from what was read."""
    batch = stepping(echo, 30)
    left: list[int] = []
    inner = echo._steps

    def watched(*arguments: Any) -> Iterator[Any]:
        try:
            yield from inner(*arguments)
        finally:
            left.append(len(echo.calls))

    # Somebody who holds them does not keep them open.
    made: list[Any] = []

    def held(*arguments: Any) -> Any:
        made.append(watched(*arguments))
        return made[-1]

    echo._steps = held  # type: ignore[method-assign, assignment]
    steps = batch.decode([chunk_of(echo, 0, 1, 0)], alpha=0.3, steps=9)
    assert steps is not None
    assert [next(steps).tolist() for _ in range(2)] == [[0], [0]] and left == []
    steps.close()
    assert left == [3] and (batch.lengths, batch.cache_lengths.tolist()) == ([32], [[32] * 4])
    batch.extend([chunk_of(echo, 0, 1, 0)], alpha=0.3)
    assert batch.lengths == [33]


@pytest.mark.parametrize(("steps", "capacity"), [(6, 256), (7, 512)])
def test_steps_have_room_before_the_first(steps: int, capacity: int, echo: Echo) -> None:
    """250 rows, the first step's and those of the steps after it."""
    batch = stepping(echo, 250)
    found = batch.decode([chunk_of(echo, 0, 1, 0)], alpha=0.3, steps=steps)
    assert batch.capacities == (capacity,) * 3 and found is not None
    assert len(list(found)) == steps and batch.capacities == (capacity,) * 3
    assert batch.caches is echo.made[-1] and not echo.made[-1].is_replaced


def test_steps_that_find_no_token(echo: Echo) -> None:
    """-1 stands for logits that are no numbers."""
    batch = stepping(echo, 30)
    echo._steps = lambda *_: iter_steps([4], [-1], [5])  # type: ignore[method-assign]
    steps = batch.decode([chunk_of(echo, 0, 1, 0)], alpha=0.3, steps=3)
    assert steps is not None and next(steps).tolist() == [4]
    with pytest.raises(NotFinite, match="the language model computed them"):
        next(steps)
    assert next(steps, None) is None


def iter_steps(*tokens: list[int]) -> Steps:
    """Steps that find these."""
    for ids in tokens:
        yield np.array(ids, np.int32)


def test_steps_end_where_the_positions_do(echo: Echo) -> None:
    """And where there is none left, the first is refused."""
    echo.longest = 500
    batch = stepping(echo, 500)
    with pytest.raises(InvalidRequest, match="has 501 tokens"):
        batch.decode([chunk_of(echo, 0, 1, 0)], alpha=0.3, steps=1)
    batch = stepping(echo, 250)
    steps = batch.decode([chunk_of(echo, 0, 1, 0)], alpha=0.3, steps=5000)
    assert steps is not None and len(list(steps)) == 250
    assert (batch.capacities, batch.lengths) == ((512,) * 3, [500])


def test_sequences_go_back_and_another_way(echo: Echo) -> None:
    """To where they were, or to some tokens behind it; what is ahead is written over, in the same caches."""
    echo.may_rewind = True
    batch = Batch(echo, 2)
    start = batch.mark()
    batch.extend([chunk_of(echo, 0, 30, 20), chunk_of(echo, 1, 12, 0)], alpha=0.3)
    end, lengths = batch.mark(), batch.cache_lengths.copy()
    for _ in range(3):
        batch.extend([chunk_of(echo, 0, 1, 0), chunk_of(echo, 1, 1, 0)], alpha=0.3)
    batch.rewind(end, 2)
    assert batch.lengths == [32, 14] and batch.cache_lengths.tolist() == (lengths + 2).tolist()
    batch.extend([chunk_of(echo, 1, 1, 0)], alpha=0.3)
    assert echo.calls[-1][graph_io.POSITION_IDS].tolist() == [14]
    assert echo.calls[-1][graph_io.past_lengths(0)].tolist() == [32, 14]
    # What a batch does after a mark does not change it.
    batch.rewind(end)
    echo.steps_ahead, end = True, batch.mark()
    steps = batch.decode([chunk_of(echo, 0, 1, 0), chunk_of(echo, 1, 1, 0)], alpha=0.3, steps=3)
    assert steps is not None and len(list(steps)) == 3 and batch.lengths == [33, 15]
    batch.rewind(end)
    assert batch.lengths == [30, 12] and batch.cache_lengths.tolist() == lengths.tolist()
    batch.rewind(start)
    assert batch.lengths == [0, 0] and not batch.cache_lengths.any() and len(echo.made) == 1
