# SPDX-License-Identifier: Apache-2.0
"""Comparison bundles: methods swapped between requests, packed batches, several pictures, conversations, bad input."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastmmoe.runtime.backends.batch import Batch
from fastmmoe.runtime.cli.main import main as run_main
from fastmmoe.runtime.conversation import Conversation
from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.generation import Run
from fastmmoe.runtime.method.call import Chunk
from fastmmoe.runtime.method.policy import METHODS
from fastmmoe.runtime.request.inputs import ModelInputs
from fastmmoe.runtime.request.options import RequestOptions
from fastmmoe.runtime.types import Array
from fastmmoe.runtime.vlm import VLM
from tests.support.messages import question

Tensors = dict[str, Array]
Messages = list[dict[str, Any]]

MODELS = ("dsvl2-mla", "internvl-gptoss")
EVERY_MODEL = pytest.mark.parametrize("name", MODELS)
PRUNING = [method for method in METHODS if method != "none"]
OUTPUTS = ("logits", "decode_logits", "decode_tokens", "cache_lengths")


def picture(width: int, height: int, seed: int) -> Image.Image:
    """Blocks of colour."""
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST)


@pytest.fixture(scope="session")
def comparison(comparison_bundle: Callable[[str], Path]) -> Callable[..., VLM]:
    """Function (checkpoint, **options) -> its loaded comparison bundle."""
    loaded: dict[tuple[Any, ...], VLM] = {}

    def get(name: str, **options: Any) -> VLM:
        key = (name, *sorted(options.items()))
        if key not in loaded:
            loaded[key] = VLM(comparison_bundle(name), **options)
        return loaded[key]

    return get


@pytest.mark.engines
def test_fastv_of_a_comparison_bundle_is_the_recorded_one(
    comparison: Callable[..., VLM],
    case_tensors: Callable[[str, str], Tensors],
    golden: Path,
    assert_close: Callable[..., None],
) -> None:
    found = comparison("dsvl2-mla").run_tensors(
        case_tensors("dsvl2-mla", "single"), method="fastv", retention=0.5, max_new_tokens=5
    )
    with np.load(golden / "baselines" / "fastv_dsvl2-mla.npz") as arrays:
        recorded = {name: arrays[f"K2_R0.5_{name}"] for name in ("keep_idx", "decode_tokens", "cache_len")}
        logits, decode_logits = (arrays[f"K2_R0.5_{name}"] for name in ("logits", "decode_logits"))
    assert found["kept_index_stage1"].tolist() == recorded["keep_idx"].tolist()
    assert found["decode_tokens"].tolist() == recorded["decode_tokens"].tolist()
    # Four of the five tokens have been fed back.
    assert (found["cache_lengths"] + 4).tolist() == recorded["cache_len"].tolist()
    layers = found["cache_lengths"].shape[-1]
    assert_close("logits", found["logits"], logits[:, -1], layers)
    assert_close("logits", found["decode_logits"], decode_logits, layers)


@pytest.mark.engines
@EVERY_MODEL
def test_methods_swap_and_leave_the_unmodified_model_alone(
    name: str,
    comparison: Callable[..., VLM],
    bundle: Callable[..., Path],
    case_tensors: Callable[[str, str], Tensors],
) -> None:
    tensors, model = case_tensors(name, "single"), comparison(name)
    plain = VLM(bundle(name, "--method", "none")).run_tensors(tensors, max_new_tokens=3)
    results: list[Tensors] = []
    for method in PRUNING:
        results.append(model.run_tensors(tensors, method=method, retention=0.4, max_new_tokens=3))
        unmodified = model.run_tensors(tensors, method="none", max_new_tokens=3)
        for output in OUTPUTS:
            np.testing.assert_array_equal(unmodified[output], plain[output], err_msg=f"{output} after {method}")
        assert results[-1]["cache_lengths"][-1] < plain["cache_lengths"][-1]
    assert all(np.abs(a["logits"] - b["logits"]).max() > 1e-3 for i, a in enumerate(results) for b in results[:i])


@EVERY_MODEL
def test_the_portable_graph_agrees_by_every_method(name: str, comparison: Callable[..., VLM]) -> None:
    """Two pictures with text before, between and after them."""
    text = "First {} then {} which is brighter?"
    messages = question(text, picture(200, 180, 1), picture(420, 200, 2))
    for method in PRUNING:
        native, portable = (
            comparison(name, portable=is_portable).generate(
                messages, method=method, retention=0.3, max_new_tokens=3, max_tiles=1
            )
            for is_portable in (False, True)
        )
        assert native.token_ids == portable.token_ids
        assert native.stats.cache_lengths == portable.stats.cache_lengths
        assert all(
            np.array_equal(a, b) for a, b in zip(native.stats.kept_index, portable.stats.kept_index, strict=True)
        )
        assert native.stats.kept_visual_tokens[-1] < native.stats.visual_tokens / 2


@pytest.mark.engines
@EVERY_MODEL
def test_a_batch_answers_as_its_rows_alone(name: str, comparison: Callable[..., VLM]) -> None:
    """Different lengths, two pictures and none; answers that end at different tokens."""
    model = comparison(name)
    conversations = [
        question("What is this?", picture(200, 180, 3)),
        question("Say a word."),
        question("Compare {} with {} now", picture(180, 180, 4), picture(260, 200, 5)),
    ]
    options = {"max_new_tokens": 4, "max_tiles": 1}
    for method in METHODS:
        request = options | ({} if method == "none" else {"retention": 0.35}) | {"method": method}
        together = model.generate_batch(conversations, **request)
        for answer, messages in zip(together, conversations, strict=True):
            alone = model.generate(messages, **request)
            assert answer.token_ids == alone.token_ids, method
            assert answer.stats.cache_lengths == alone.stats.cache_lengths
            kept = zip(answer.stats.kept_index, alone.stats.kept_index, strict=True)
            assert all(np.array_equal(a, b) for a, b in kept)


@pytest.mark.engines
@EVERY_MODEL
def test_packed_logits_are_those_of_single_runs(
    name: str, comparison: Callable[..., VLM], assert_close: Callable[..., None]
) -> None:
    model = comparison(name)
    messages = [question("What?", picture(200, 180, 6)), question("A much longer question?", picture(180, 200, 7))]
    inputs = [model.processor(one, max_tiles=1) for one in messages]
    for method in ("fastmmoe", "fastv", "random"):
        options = RequestOptions(method=method, retention=0.4, max_new_tokens=3)
        packed = steps(model, inputs, options)
        for row, one in enumerate(inputs):
            single = steps(model, [one], options)
            assert_close("logits", packed[:, row], single[:, 0], model.manifest.language_model.layers)


def steps(model: VLM, inputs: list[ModelInputs], options: RequestOptions) -> Array:
    """Logits [steps, rows, vocab]."""
    run = Run(model.manifest, model.backend, inputs, options, has_logits=True)
    return np.stack([[np.asarray(token.logits) for token in tokens] for tokens in run.tokens()])


@pytest.mark.engines
@pytest.mark.parametrize("method", ["none", "random"])
@EVERY_MODEL
def test_a_second_question_equals_a_fresh_run(name: str, method: str, comparison: Callable[..., VLM]) -> None:
    """What random keeps does not depend on the text: a fresh run of the whole conversation keeps the same tokens."""
    model = comparison(name)
    options: dict[str, Any] = {"method": method, "max_new_tokens": 4} | (
        {} if method == "none" else {"retention": 0.3, "seed": 5}
    )
    (message,) = question("What is this?", picture(200, 180, 8))
    conversation = Conversation(model, max_tiles=1, **options)
    first = conversation.ask(message["content"])
    second = conversation.ask("And what else is in the picture?")
    start = model.processor([message], max_tiles=1)
    stop = model.manifest.processor.stop_token_ids
    answer = [token for token in first.token_ids if token not in stop]
    ending = model.processor.follow_up("And what else is in the picture?", tokens_before=len(start.input_ids))
    ids = np.concatenate([start.input_ids, np.array(answer, np.int32), ending.input_ids])
    run = Run(
        model.manifest,
        model.backend,
        [ModelInputs(ids, start.visual_index, start.vision_inputs)],
        RequestOptions(**options),
    )
    fresh = [tokens[0].id for tokens in run.tokens()]
    assert list(second.token_ids) == fresh[: len(second.token_ids)]
    assert second.stats.cache_lengths == run.stats[0].cache_lengths
    assert second.stats.visual_tokens == second.stats.tiles == 0
    assert second.stats.past_tokens + second.stats.text_tokens == len(ids)


@pytest.mark.engines
def test_a_conversation_goes_on_by_every_method(comparison: Callable[..., VLM]) -> None:
    """A new picture in the second question is pruned; the first one's tokens stay as they are."""
    model = comparison("dsvl2-mla")
    for method in PRUNING:
        conversation = Conversation(model, method=method, retention=0.3, max_new_tokens=2, max_tiles=1)
        content = [{"type": "image", "image": picture(200, 180, 9)}, {"type": "text", "text": "What?"}]
        first = conversation.ask(content)
        second = conversation.ask(content)
        assert first.stats.kept_visual_tokens == second.stats.kept_visual_tokens
        layer = -1
        grown = second.stats.cache_lengths[layer] - first.stats.cache_lengths[layer]
        # The answer's first token was fed; its second one is among the next question's text.
        assert grown == 1 + second.stats.text_tokens + second.stats.kept_visual_tokens[-1]


@pytest.mark.engines
def test_a_stream_left_early_is_an_answer_that_ended_there(comparison: Callable[..., VLM]) -> None:
    model = comparison("dsvl2-mla")
    conversation = Conversation(model, method="none", max_new_tokens=5)
    stream = conversation.ask_stream("Count.")
    said = [next(stream).token_id for _ in range(2)]
    second = conversation.ask("Go on.")
    with pytest.raises(InvalidRequest, match="another question has been asked since"):
        next(stream)
    short = Conversation(model, method="none", max_new_tokens=2)
    assert list(short.ask("Count.").token_ids) == said
    assert short.ask("Go on.").token_ids == second.token_ids[:2]


@pytest.mark.engines
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"retention": 0.0}, r"retention 0.0: expected a number in \(0, 1\]"),
        ({"retention": -0.5}, r"retention -0.5: expected a number in \(0, 1\]"),
        ({"retention": math.nan}, r"retention nan: expected a number in \(0, 1\]"),
        ({"retention": 1.5}, r"retention 1.5: expected a number in \(0, 1\]"),
        ({"method": "fast"}, "method 'fast': expected one of none, fastmmoe, random, fastv, sparsevlm"),
        ({"method": "none", "retention": 0.5}, "method none is the unmodified model"),
        ({"method": "random", "seed": -1}, "seed -1: expected a whole number, 0 or more"),
        ({"pruning_rate": 1.0}, r"pruning_rate 1.0: expected a number in \[0, 1\)"),
        ({"pruning_rate": 0.5, "retention": 0.5}, "give retention or pruning_rate, not both"),
        ({"alpha": math.nan}, r"alpha nan: expected a number in \[0, 1\]"),
        ({"visual_top_k": 5}, "visual_top_k 5: expected 1 to 4"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], words: str, comparison: Callable[..., VLM]) -> None:
    model = comparison("dsvl2-mla")
    messages = question("What?", picture(200, 180, 10))
    for call in (model.generate_stream, model.generate, lambda m, **o: model.generate_batch([m], **o)):
        with pytest.raises(InvalidRequest, match=words):
            call(messages, **options)


@pytest.mark.engines
def test_an_empty_batch_is_refused(comparison: Callable[..., VLM]) -> None:
    with pytest.raises(InvalidRequest, match="no conversations: expected at least one"):
        comparison("dsvl2-mla").generate_batch([])


@pytest.mark.engines
@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([2, 3, 4, 20], "visual_index holds row 20: expected 0 to 11, the rows of the prompt"),
        ([-1, 3, 4, 5], "visual_index holds row -1: expected 0 to 11"),
        ([2, 4, 3, 5], "visual_index holds row 3 after row 4: expected ascending rows, each once"),
        ([2, 3, 3, 4], "visual_index holds row 3 after row 3: expected ascending rows"),
        ([2, 3, 4], "visual_index has 3 rows, the schedule is for 4 visual tokens"),
    ],
)
def test_bad_visual_rows_are_refused(rows: list[int], words: str, comparison: Callable[..., VLM]) -> None:
    batch, chunk = small_chunk(comparison("dsvl2-mla"), rows)
    with pytest.raises(InvalidRequest, match=words):
        batch.extend([chunk], alpha=0.3)


@pytest.mark.parametrize("rows", [[2, 3, 4, 20], [-1, 3, 4, 5], [2, 4, 3, 5], [2, 3, 3, 4]])
def test_the_native_operators_refuse_bad_visual_rows_too(
    rows: list[int], vlm: Callable[..., VLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, chunk = small_chunk(vlm("dsvl2-mla"), rows)
    monkeypatch.setattr(Chunk, "check", lambda self: None)
    with pytest.raises(Exception, match=r"FmmTokenPrune: visual_index\[\d\] is|indices element out"):
        batch.extend([chunk], alpha=0.3)


def small_chunk(model: VLM, rows: list[int]) -> tuple[Batch, Chunk]:
    info = model.manifest.language_model
    run = Run(
        model.manifest,
        model.backend,
        [ModelInputs(np.arange(12, dtype=np.int32), np.arange(2, 6, dtype=np.int32), {})],
        RequestOptions(),
    )
    embeds = np.random.default_rng(0).standard_normal((12, info.hidden_size)).astype(np.float32)
    return Batch(model.backend), Chunk(0, embeds, np.array(rows, np.int32), run.schedules[0])


@pytest.mark.engines
def test_sparsevlm_needs_text_to_rate_by(comparison: Callable[..., VLM]) -> None:
    model = comparison("dsvl2-mla")
    inputs = ModelInputs(np.full(30, 7, np.int32), np.arange(4, 30, dtype=np.int32), {})
    run = Run(model.manifest, model.backend, [inputs], RequestOptions(method="sparsevlm", retention=0.5))
    with pytest.raises(InvalidRequest, match="the prompt ends with a visual token: sparsevlm rates by the text"):
        next(run.tokens())


@pytest.mark.engines
def test_the_command_takes_methods(
    bundle: Callable[..., Path],
    comparison_bundle: Callable[[str], Path],
    capfd: pytest.CaptureFixture[str],
    refusal: Callable[..., str],
    tmp_path: Path,
) -> None:
    out, image = str(comparison_bundle("dsvl2-mla")), tmp_path / "a.png"
    picture(200, 180, 11).save(image)
    command = ["run", out, "--image", str(image), "--prompt", "a", "--max-new-tokens", "2"]
    capfd.readouterr()
    for method in PRUNING:
        assert run_main([*command, "--method", method, "--retention", "0.5"]) == 0
        error = capfd.readouterr().err
        assert error.startswith(f"{method}: visual tokens 421 -> ")
        assert "retention 0.5, pruning rate 0.5" in error
    assert "invalid choice: 'fast'" in refusal(run_main, [*command, "--method", "fast"])
    plain = str(bundle("dsvl2-mla", "--method", "none"))
    line = refusal(run_main, ["run", plain, *command[2:], "--method", "fastv"])
    assert line.endswith("method fastv: the bundle has none; export with --method fastv or all")
