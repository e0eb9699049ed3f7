# SPDX-License-Identifier: Apache-2.0
"""Calls as arrays: rows of several sequences one after the other, random scores, and chunks that are refused."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.method.call import NO_VISUAL_TOKENS, Call, Chunk, offsets, random_scores
from fastmmoe.runtime.method.policy import METHODS, Method
from fastmmoe.runtime.method.schedule import Schedule
from tests.support.manifests import toy_manifest

POLICY = toy_manifest("deepseek_vl2").policy


def schedule_of(visual_tokens: int, keep: int, method: Method = "fastmmoe", experts: int = 2) -> Schedule:
    """Two sites, of which the second prunes."""
    return Schedule(method, 0.5, visual_tokens, (visual_tokens, keep), (0, 1), (0, 3), (1,), (experts,))


def chunk_of(sequence: int, tokens: int, visual: Any, keep: int | None = None, **schedule: Any) -> Chunk:
    rows = np.array(visual, np.int32)
    plan = schedule_of(len(rows), len(rows) if keep is None else keep, **schedule)
    return Chunk(sequence, np.zeros((tokens, 3)), rows, plan)


def call_of(*chunks: Chunk, lengths: list[int] | None = None, seed: int = 0) -> Call:
    return Call(POLICY, chunks, lengths or [0] * len(chunks), [[0] * len(chunks)] * 3, 0.5, seed)


@pytest.mark.parametrize(
    ("visual", "message"),
    [
        ([0, 1, 5], "visual_index holds row 5: expected 0 to 4, the rows of the prompt"),
        ([-1, 1, 2], "visual_index holds row -1: expected 0 to 4, the rows of the prompt"),
        ([1, 3, 3], "visual_index holds row 3 after row 3: expected ascending rows, each once"),
        ([2, 1, 0], "visual_index holds row 1 after row 2: expected ascending rows, each once"),
    ],
)
def test_rows_that_no_picture_has(visual: list[int], message: str) -> None:
    call_of(chunk_of(0, 5, [0, 1, 4]))
    with pytest.raises(InvalidRequest, match=re.escape(message)):
        call_of(chunk_of(0, 5, [0, 1, 4]), chunk_of(1, 5, visual))


def test_a_schedule_of_another_picture() -> None:
    chunk = Chunk(0, np.zeros((5, 3)), np.arange(3), schedule_of(4, 2))
    with pytest.raises(InvalidRequest, match="visual_index has 3 rows, the schedule is for 4 visual tokens"):
        call_of(chunk)


@pytest.mark.parametrize("other", [{"method": "random"}, {"experts": 3}])
def test_sequences_of_one_call_share_method_and_experts(other: dict[str, Any]) -> None:
    call_of(chunk_of(0, 5, [1]), chunk_of(1, 5, [1, 2]))
    with pytest.raises(InvalidRequest, match="differ in method or visual_top_k: expected one of each"):
        call_of(chunk_of(0, 5, [1]), chunk_of(1, 5, [1], **other))


def test_rows_of_all_sequences() -> None:
    """A prompt with a picture, a question after 7 positions and a decoded token after 20."""
    chunks = chunk_of(2, 5, [1, 2, 3], keep=2), chunk_of(0, 3, [0], keep=1), chunk_of(1, 1, [])
    call = call_of(*chunks, lengths=[0, 7, 20])
    assert call.tokens == [5, 3, 1] and call.visual_tokens == [3, 1, 0]
    assert call.positions().tolist() == [0, 1, 2, 3, 4, 7, 8, 9, 20]
    assert call.sequences().tolist() == [2] * 5 + [0] * 3 + [1]
    assert call.visual_index().tolist() == [1, 2, 3, 5]
    assert (call.keep(0), call.keep(1)) == ([3, 1, 0], [2, 1, 0])
    assert (call.merge(1), call.recycle(1)) == ([1] * 3, [3] * 3)
    assert call.method_number() == METHODS.index("fastmmoe")


def test_calls_that_are_alike() -> None:
    """Of other sequences, row counts, schedules or weights, or with pictures, they are not."""
    text = schedule_of(0, 0)

    def alike(*chunks: Chunk, alpha: float = 0.5, lengths: tuple[int, ...] = (4, 9)) -> object:
        return Call(POLICY, chunks, lengths, [[0] * 2] * 3, alpha, 0).alike

    one, other = (Chunk(i, np.zeros((1, 3)), NO_VISUAL_TOKENS, text) for i in (0, 1))
    same = Chunk(0, np.ones((1, 3)), np.arange(0), schedule_of(0, 0))
    assert alike(one, other) == alike(same, other, lengths=(5, 10))
    longer = Chunk(0, np.zeros((2, 3)), NO_VISUAL_TOKENS, text)
    for others in ([other, one], [one], [longer, other], [replace(one, schedule=schedule_of(0, 0, "random"))] * 2):
        assert alike(*others) != alike(one, other)
    assert alike(one, other, alpha=0.25) != alike(one, other)
    assert alike(chunk_of(0, 5, [1]), other) is None


@pytest.mark.parametrize(("visual", "rows"), [([], 0), ([0], 4), ([1, 3], 1), ([4], 0)])
def test_text_after_the_last_picture(visual: list[int], rows: int) -> None:
    assert chunk_of(0, 5, visual).rows_after_pictures == rows


def test_raters_are_the_text_after_the_picture() -> None:
    def rater_rows(*chunks: Chunk) -> int:
        return call_of(*chunks).rater_rows()

    asked = chunk_of(0, 9, [1, 2, 3], keep=2, method="sparsevlm")
    assert rater_rows(asked) == 5
    assert rater_rows(chunk_of(0, 9, [1, 2, 3], keep=2)) == 0
    with pytest.raises(InvalidRequest, match="sparsevlm prunes one sequence at a time, the call has 2"):
        rater_rows(asked, chunk_of(1, 9, [1], method="sparsevlm"))
    with pytest.raises(InvalidRequest, match="ends with a visual token: sparsevlm rates by the text after the last"):
        rater_rows(chunk_of(0, 4, [1, 2, 3], keep=2, method="sparsevlm"))


def test_sparsevlm_takes_several_sequences_where_it_prunes_none() -> None:
    decoded = Chunk(0, np.zeros((1, 3)), NO_VISUAL_TOKENS, schedule_of(3, 2, method="sparsevlm").for_text())
    assert call_of(decoded, decoded).rater_rows() == 0


def test_random_scores_are_places_of_an_order() -> None:
    scores = random_scores(3, 10, 50)
    assert scores.dtype == np.float32 and sorted(scores.tolist()) == list(range(1, 51))
    assert random_scores(3, 10, 50).tolist() == scores.tolist()
    assert random_scores(4, 10, 50).tolist() != scores.tolist() != random_scores(3, 11, 50).tolist()
    assert random_scores(0, 0, 0).shape == (0,)


def test_random_scores_are_those_of_every_release() -> None:
    """A bundle answers alike with every NumPy. The greatest score is where the generator's number is least."""
    first = [int(value) for value in np.random.PCG64([1, 5]).random_raw(6)]
    assert random_scores(1, 5, 6).tolist() == [6 - sorted(first).index(value) for value in first]
    assert random_scores(1, 5, 6).tolist() == [5, 1, 2, 4, 3, 6]


def test_each_sequence_has_random_scores_of_its_own_position() -> None:
    chunks = [chunk_of(0, 9, range(4), keep=2, method="random"), chunk_of(1, 9, range(3), keep=2, method="random")]
    scores = call_of(*chunks, lengths=[0, 6], seed=2).random_scores()
    assert scores.tolist() == [*random_scores(2, 0, 4).tolist(), *random_scores(2, 6, 3).tolist()]
    assert call_of(chunk_of(0, 9, range(4), keep=2)).random_scores().tolist() == [0] * 4
    assert call_of(chunk_of(0, 1, [], method="random")).random_scores().shape == (0,)


@pytest.mark.parametrize(("counts", "found"), [([], [0]), ([3], [0, 3]), ([2, 0, 5], [0, 2, 2, 7])])
def test_offsets(counts: list[int], found: list[int]) -> None:
    assert offsets(counts).tolist() == found and offsets(counts).dtype == np.int32
