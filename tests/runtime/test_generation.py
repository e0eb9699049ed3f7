# SPDX-License-Identifier: Apache-2.0
"""Runs from prompts to tokens, on a backend that says what it is told to."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from fastmmoe.runtime.backends.batch import Batch
from fastmmoe.runtime.bundle import graph_io
from fastmmoe.runtime.ending import Ending
from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.generation import Run, Token
from fastmmoe.runtime.request.inputs import ModelInputs
from fastmmoe.runtime.request.options import RequestOptions
from fastmmoe.runtime.types import Array
from tests.support.echo import Echo, scores_of
from tests.support.manifests import toy_manifest

MANIFEST = toy_manifest("deepseek_vl2")
VOCAB = MANIFEST.language_model.vocab_size
LONGEST = MANIFEST.processor.max_position_embeddings


def inputs_of(tokens: int, visual: int = 0) -> ModelInputs:
    """A prompt whose visual tokens stand after its first token, of two tiles."""
    index = np.arange(1, 1 + visual, dtype=np.int32)
    pictures: dict[str, Array] = {}
    if visual:
        pictures = {"pixel_values": np.zeros((2, 3, 16, 16)), "layout_index": np.zeros(visual, np.int32)}
    return ModelInputs(np.full(tokens, 4, np.int32), index, pictures, (2,) if visual else ())


def run_of(
    *inputs: ModelInputs,
    echo: Echo | None = None,
    batch: Batch | None = None,
    has_logits: bool = False,
    **options: Any,
) -> Run:
    backend = Echo(MANIFEST.language_model, MANIFEST.policy) if echo is None else echo
    return Run(MANIFEST, backend, inputs, RequestOptions.of(options), batch, has_logits=has_logits)


@pytest.fixture
def echo() -> Echo:
    """Says 3, then one more each time it is fed a token."""
    found = Echo(MANIFEST.language_model, MANIFEST.policy)

    def next_ids(feeds: dict[str, Array]) -> Array:
        last = feeds[graph_io.INPUTS_EMBEDS][feeds[graph_io.SEQUENCE_OFFSETS][1:] - 1, 0]
        is_prompt = feeds[graph_io.SEQUENCE_OFFSETS][1] > 1
        return scores_of(*([3] * len(last) if is_prompt else (last.astype(int) + 1)), vocab_size=VOCAB)

    found.logits = next_ids
    return found


def said(steps: list[list[Token]]) -> list[list[tuple[int, int]]]:
    return [[(token.sequence, token.id) for token in step] for step in steps]


def test_each_token_is_fed_to_the_next_call(echo: Echo) -> None:
    run = run_of(inputs_of(6), inputs_of(4), echo=echo, max_new_tokens=3)
    assert said(list(run.tokens())) == [[(0, 3), (1, 3)], [(0, 4), (1, 4)], [(0, 5), (1, 5)]]
    prompt, first, second = echo.calls
    assert prompt[graph_io.SEQUENCE_OFFSETS].tolist() == [0, 6, 10]
    assert [call[graph_io.POSITION_IDS].tolist() for call in (first, second)] == [[6, 4], [7, 5]]
    assert [call[graph_io.INPUTS_EMBEDS][:, 0].tolist() for call in (first, second)] == [[3, 3], [4, 4]]
    assert run.batch.lengths == [8, 6] and run.unfed == [[5], [5]]


def test_the_smaller_token_wins_a_tie() -> None:
    (step,) = run_of(inputs_of(3), max_new_tokens=1).tokens()
    (with_logits,) = run_of(inputs_of(3), max_new_tokens=1, has_logits=True).tokens()
    assert step[0].id == with_logits[0].id == 0
    assert step[0].logits is None and np.array_equal(with_logits[0].logits, [0.5] * VOCAB)  # type: ignore[arg-type]


def test_steps_that_the_backend_does_by_itself(echo: Echo) -> None:
    """The shortest answer ends them, and so does a sequence that stops; the rest go on from where they are."""
    echo.steps_ahead = True
    run = run_of(inputs_of(6), inputs_of(4), inputs_of(5), echo=echo, max_new_tokens=6)
    run.max_new_tokens[2] = 4
    steps = []
    for step in run.tokens():
        steps.append(said([step])[0])
        if len(steps) == 2:
            run.finish(0)
    assert steps == [
        [(0, 3), (1, 3), (2, 3)],
        [(0, 4), (1, 4), (2, 4)],
        [(1, 5), (2, 5)],
        [(1, 6), (2, 6)],
        [(1, 7)],
        [(1, 8)],
    ]
    assert run.batch.lengths == [7, 9, 8] and run.unfed == [[4], [8], [6]]
    assert [len(call[graph_io.SEQUENCE_IDS]) for call in echo.calls] == [15, 3, 2, 2, 1, 1]


def test_steps_that_nobody_reads_are_left(echo: Echo) -> None:
    echo.steps_ahead = True
    run = run_of(inputs_of(6), echo=echo, max_new_tokens=6)
    tokens = run.tokens()
    for _ in range(3):
        next(tokens)
    tokens.close()  # type: ignore[attr-defined]
    assert run.batch.lengths == [8] and run.unfed == [[5]]


def test_a_sequence_that_is_finished_says_no_more(echo: Echo) -> None:
    run = run_of(inputs_of(3), inputs_of(3), echo=echo, max_new_tokens=4)
    steps = []
    for step in run.tokens():
        steps.append(step)
        if len(steps) == 2:
            run.finish(0)
    assert said(steps)[1:] == [[(0, 4), (1, 4)], [(1, 5)], [(1, 6)]]
    assert echo.calls[2][graph_io.SEQUENCE_IDS].tolist() == [1]
    assert run.unfed == [[4], [6]] and run.batch.lengths == [4, 6]


@pytest.mark.parametrize(("tokens", "most"), [(LONGEST, 1), (LONGEST - 1, 2), (LONGEST - 9, 10), (3, 10)])
def test_an_answer_ends_with_the_models_positions(tokens: int, most: int, echo: Echo) -> None:
    """The last token is never fed, so it needs no position."""
    echo.logits = 0.5
    echo.longest = LONGEST
    run = run_of(inputs_of(tokens), echo=echo, max_new_tokens=10)
    assert run.max_new_tokens == [most]
    assert len(list(run.tokens())) == most and run.batch.lengths[0] <= LONGEST


def test_pictures_are_at_the_visual_tokens_and_text_is_not_looked_at(echo: Echo) -> None:
    run = run_of(inputs_of(9, visual=4), inputs_of(5), echo=echo, max_new_tokens=1)
    list(run.tokens())
    assert len(echo.pictures) == 1
    assert echo.calls[0][graph_io.INPUTS_EMBEDS][:, 0].tolist() == [4, -1, -1, -1, -1, 4, 4, 4, 4, *[4] * 5]
    assert echo.calls[0][graph_io.VISUAL_INDEX].tolist() == [1, 2, 3, 4]


def test_counts_of_a_request(echo: Echo) -> None:
    run = run_of(inputs_of(20, visual=16), inputs_of(5), echo=echo, retention=0.25, max_new_tokens=3)
    list(run.tokens())
    with_picture, text = run.stats
    assert (with_picture.method, with_picture.retention, with_picture.pruning_rate) == ("fastmmoe", 0.25, 0.75)
    assert (with_picture.text_tokens, with_picture.visual_tokens, with_picture.tiles) == (4, 16, 2)
    assert with_picture.kept_visual_tokens == (8, 4)
    # The sites are in layers 1 and 2, which still cache what enters them.
    assert with_picture.cache_lengths == [20, 20, 12, 8]
    assert (text.kept_visual_tokens, text.cache_lengths, text.tiles) == ((0, 0), [5] * 4, 0)
    assert 0 < with_picture.prefill_flops < with_picture.prefill_flops_unmodified
    assert with_picture.flops_reduction == 1 - with_picture.prefill_flops / with_picture.prefill_flops_unmodified
    assert text.flops_reduction == 0 and text.vision_flops == 0 < with_picture.vision_flops
    assert len(with_picture.decode_ms) == len(text.decode_ms) == 2
    assert with_picture.ttft_ms == with_picture.preprocess_ms + with_picture.vision_ms + with_picture.prefill_ms > 0


def test_rows_that_survive_are_those_of_the_own_prompt() -> None:
    """The echo keeps the first rows of all that are packed, whosever they are."""
    run = run_of(inputs_of(20, visual=16), inputs_of(30, visual=16), retention=0.25, max_new_tokens=1)
    list(run.tokens())
    first, second = (one.kept_index for one in run.stats)
    # Of 50 rows 34 are left, then 26.
    assert [len(rows) for rows in first] == [20, 20]
    assert [rows.tolist() for rows in second] == [[*range(14)], [*range(6)]]


def test_a_run_that_goes_on(echo: Echo) -> None:
    before = run_of(inputs_of(20, visual=16), echo=echo, retention=0.25, max_new_tokens=1)
    list(before.tokens())
    run = run_of(inputs_of(6), echo=echo, batch=before.batch, max_new_tokens=2)
    assert (run.stats[0].past_tokens, run.max_new_tokens) == (20, [2])
    list(run.tokens())
    assert echo.calls[1][graph_io.POSITION_IDS].tolist() == [*range(20, 26)]
    assert run.stats[0].cache_lengths == [26, 26, 18, 14]
    # The unmodified model would attend to every token of before.
    assert run.stats[0].prefill_flops < run.stats[0].prefill_flops_unmodified


def long_run(*inputs: ModelInputs, echo: Echo, batch: Batch | None = None, **options: Any) -> Run:
    """Of a model whose longest sequence is 4096."""
    processor = replace(MANIFEST.processor, max_position_embeddings=4096)
    return Run(replace(MANIFEST, processor=processor), echo, inputs, RequestOptions.of(options), batch)


@pytest.mark.parametrize(("new_tokens", "capacity"), [(57, 256), (58, 512)])
def test_caches_are_made_once_for_a_prompt_and_its_answer(new_tokens: int, capacity: int, echo: Echo) -> None:
    """200 tokens and all but the last of the answer, which is never fed; the shorter prompt has room in the same."""
    echo.logits = 0.5
    run = long_run(inputs_of(200), inputs_of(150), echo=echo, max_new_tokens=new_tokens)
    list(run.tokens())
    assert [caches.capacities for caches in echo.made] == [(capacity,) * 3]
    assert run.batch.cache_lengths[:, 0].tolist() == [199 + new_tokens, 149 + new_tokens]


def test_caches_are_made_anew_where_a_conversation_outgrows_them(echo: Echo) -> None:
    """The second question has room behind the first's answer, the third has not."""
    echo.logits, batch = 0.5, None
    for tokens, made in ((100, 1), (90, 1), (80, 2)):
        run = long_run(inputs_of(tokens), echo=echo, batch=batch, max_new_tokens=20)
        list(run.tokens())
        batch = run.batch
        assert len(echo.made) == made
    assert [caches.capacities for caches in echo.made] == [(256,) * 3, (512,) * 3]
    assert run.batch.cache_lengths.tolist() == [[100 + 90 + 80 + 3 * 19] * 4]


def test_options_that_the_method_does_not_allow() -> None:
    with pytest.raises(InvalidRequest, match="method random: the bundle has none, fastmmoe"):
        run_of(inputs_of(3), method="random")
    with pytest.raises(InvalidRequest, match="visual_top_k 5: expected 1 to 4"):
        run_of(inputs_of(9, visual=4), visual_top_k=5)


def drawn(echo: Echo, *prompts: int, **options: Any) -> list[list[int]]:
    """Tokens of each prompt of so many tokens."""
    found: list[list[int]] = [[] for _ in prompts]
    for step in run_of(*map(inputs_of, prompts), echo=echo, **options).tokens():
        for token in step:
            found[token.sequence].append(token.id)
    return found


SAMPLED = {"temperature": 0.8, "max_new_tokens": 12}


def uneven(feeds: dict[str, Array]) -> Array:
    """The same logits for all."""
    return np.linspace(0, 2, VOCAB, dtype=np.float32)[None].repeat(len(feeds[graph_io.SEQUENCE_OFFSETS]) - 1, 0)


def test_what_is_drawn_follows_from_the_seed_and_from_no_neighbour(echo: Echo) -> None:
    echo.logits, echo.steps_ahead = uneven, True
    alone = [drawn(echo, n, seed=3, **SAMPLED)[0] for n in (6, 4)]
    assert drawn(echo, 6, 4, seed=3, **SAMPLED) == alone
    assert drawn(echo, 6, 4, seed=4, **SAMPLED) != alone
    assert alone[0] != alone[1] and len(set(alone[0])) > 3


def test_drawn_tokens_follow_the_distribution(echo: Echo) -> None:
    """Of 4000 seeds, through a whole run."""
    echo.logits = uneven
    weights = np.exp(np.linspace(0, 2, VOCAB) / 0.8)
    inputs = inputs_of(3)
    counts = np.zeros(VOCAB)
    for seed in range(4000):
        ((token,),) = run_of(inputs, echo=echo, temperature=0.8, max_new_tokens=1, seed=seed).tokens()
        counts[token.id] += 1
    expected = 4000 * weights / weights.sum()
    assert ((counts - expected) ** 2 / expected).sum() < CHI_SQUARE


CHI_SQUARE = 27.88
"""At 0.1 %, of 9 degrees of freedom."""


@pytest.mark.parametrize(
    ("options", "result"), [({}, "next_ids"), ({"temperature": 1}, "logits"), ({"logprobs": 0}, "logits")]
)
def test_greedy_runs_alone_decode_ahead(
    options: dict[str, Any], result: str, echo: Echo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device chooses their tokens; what needs logits steps call by call. A backend that does not is asked once."""
    echo.logits, echo.steps_ahead = uneven, True
    extend, wanted, ahead = echo.extend, set(), []

    def watch(feeds: Any, caches: Any, names: Any) -> Any:
        wanted.add(names[0])
        return extend(feeds, caches, names)

    monkeypatch.setattr(echo, "extend", watch)
    monkeypatch.setattr(echo, "decode", lambda *_: ahead.append(1))
    drawn(echo, 3, max_new_tokens=3, **options)
    assert wanted == {result} and len(ahead) == (1 if result == "next_ids" else 0)


def test_a_token_is_embedded_once(echo: Echo, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the first step's, whose backend is asked whether it decodes by itself."""
    embed, ids = echo.embed, []

    def watch(input_ids: Any, *others: Any) -> Any:
        ids.append(input_ids.tolist())
        return embed(input_ids, *others)

    monkeypatch.setattr(echo, "embed", watch)
    echo.logits = uneven
    tokens = drawn(echo, 3, max_new_tokens=5)
    prompt, *steps = ids
    assert len(prompt) == 3 and steps == [[token] for token in (tokens[0][0], *tokens[0][:4])]


def test_log_probabilities_of_tokens(echo: Echo) -> None:
    echo.logits = uneven
    ((token,),) = run_of(inputs_of(3), echo=echo, max_new_tokens=1, logprobs=2, temperature=1, seed=1).tokens()
    values = np.linspace(0, 2, VOCAB) - np.log(np.exp(np.linspace(0, 2, VOCAB)).sum())
    assert token.logprobs is not None and token.logprobs.chosen == pytest.approx(values[token.id])
    assert [i for i, _ in token.logprobs.top] == [VOCAB - 1, VOCAB - 2]


class Clock:
    """Counts the calls of graphs, and is what cancels at one of them."""

    def __init__(self, echo: Echo, most: int, patch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self._most = most
        for name in ("image_features", "extend"):
            patch.setattr(echo, name, self._counted(name, getattr(echo, name)))
        patch.setattr("fastmmoe.runtime.ending.now", lambda: float(len(self.calls)))

    def _counted(self, name: str, call: Any) -> Any:
        def counted(*arguments: Any) -> Any:
            self.calls.append(name)
            return call(*arguments)

        return counted

    def is_set(self) -> bool:
        """As an event."""
        return len(self.calls) >= self._most


@pytest.mark.parametrize("way", ["deadline", "cancelled"])
@pytest.mark.parametrize("is_ahead", [False, True])
@pytest.mark.parametrize("most", range(8))
def test_no_graph_is_called_after_the_end(
    most: int, is_ahead: bool, way: str, echo: Echo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two pictures, then two prompts that do not fit into one call, then steps of both."""
    echo.logits, echo.prompts_together = 0.5, 1
    clock = Clock(echo, most, monkeypatch)
    ending = Ending(float(most)) if way == "deadline" else Ending(cancel=clock)
    echo.steps_ahead = is_ahead
    inputs = [inputs_of(9, visual=4), inputs_of(7, visual=4)]
    run = Run(MANIFEST, echo, inputs, RequestOptions(max_new_tokens=20, method="none"), ending=ending)
    found = said(list(run.tokens()))
    assert clock.calls == ["image_features", "image_features", *["extend"] * 6][:most] and run.ended == way
    # The first prompt's token is there after 3 calls, the second's after 4, then one of each after every call.
    assert [len(step) for step in found] == {0: [], 1: [], 2: [], 3: [1]}.get(most, [2] * (most - 3))
    assert run.batch.lengths == [9 + max(most - 4, 0) if most > 2 else 0, 7 + max(most - 4, 0) if most > 3 else 0]


class Slow(np.ndarray):
    """Features of a device, which are there only once somebody has waited for them."""

    waited: list[float]

    def elapsed_ms(self) -> float:
        """Two seconds."""
        self.waited.append(2.0)
        return 2000.0


@pytest.mark.parametrize(("deadline", "calls"), [(1.0, 0), (3.0, 1), (None, 1)])
def test_a_deadline_passes_while_a_device_looks_at_a_picture(
    deadline: float | None, calls: int, echo: Echo, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    look = echo.image_features

    def queued(vision_inputs: dict[str, Array]) -> Array:
        features = look(vision_inputs).view(Slow)
        features.waited = waited
        return features

    monkeypatch.setattr(echo, "image_features", queued)
    monkeypatch.setattr("fastmmoe.runtime.ending.now", lambda: sum(waited))
    options = RequestOptions(max_new_tokens=1)
    run = Run(MANIFEST, echo, [inputs_of(9, visual=4)], options, ending=Ending(deadline))
    list(run.tokens())
    assert len(echo.calls) == calls and run.ended == (None if calls else "deadline") and waited == [2.0]
    assert 2000 <= run.stats[0].vision_ms < 2000 + 1000 and run.stats[0].prefill_ms < 1000


def test_an_answer_that_ends_by_itself_was_not_ended(echo: Echo) -> None:
    """Though its deadline passes with its last token."""
    run = Run(MANIFEST, echo, [inputs_of(3)], RequestOptions(max_new_tokens=2), ending=Ending(cancel=Later(echo, 2)))
    assert len(list(run.tokens())) == 2 and run.ended is None


class Later:
    """Set once there were so many calls."""

    def __init__(self, echo: Echo, calls: int) -> None:
        self._echo, self._calls = echo, calls

    def is_set(self) -> bool:
        """As an event."""
        return len(self._echo.calls) >= self._calls


def test_another_thread_cancels(echo: Echo) -> None:
    echo.logits, cancel = 0.5, threading.Event()
    run = Run(MANIFEST, echo, [inputs_of(3)], RequestOptions(max_new_tokens=50), ending=Ending(cancel=cancel))
    count = 0
    for _ in run.tokens():
        count += 1
        if count == 5:
            thread = threading.Thread(target=cancel.set)
            thread.start()
            thread.join()
    assert (count, len(echo.calls), run.ended) == (5, 5, "cancelled")
