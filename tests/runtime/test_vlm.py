# SPDX-License-Identifier: Apache-2.0
"""Arguments of a bundle's object that are not what they should be, and what it makes of a run."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from fastmmoe.runtime.errors import BundleMismatch, InvalidRequest
from fastmmoe.runtime.request.options import RequestOptions
from fastmmoe.runtime.request.processor import Processor
from fastmmoe.runtime.vlm import VLM
from tests.support.echo import echo_vlm, scores_of
from tests.support.manifests import toy_manifest
from tests.support.processors import MakeProcessor
from tests.support.scripted_run import ScriptedRun


@pytest.mark.parametrize("bundle", [123, None, b"demo", ["demo"], True])
def test_what_is_no_directory_of_a_bundle(bundle: Any) -> None:
    with pytest.raises(InvalidRequest, match=f"^bundle is of type {type(bundle).__name__}: expected a str or Path"):
        VLM(bundle)


@pytest.mark.parametrize("name", ["portable", "verify"])
@pytest.mark.parametrize("value", ["yes", "no", "", 0, 1, None, 0.0])
def test_what_is_neither_true_nor_false(name: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=f"^{name} is of type {type(value).__name__}: expected True or False$"):
        VLM(tmp_path, **{name: value})


def test_truth_values_of_numpy_count_as_pythons(tmp_path: Path) -> None:
    with pytest.raises(BundleMismatch):
        VLM(tmp_path, portable=np.False_, verify=np.True_)  # type: ignore[arg-type]


@pytest.mark.parametrize("conversations", [np.array([]), np.array(3), b"a", "a", {}, 3, None])
def test_what_is_no_list_of_conversations(conversations: Any) -> None:
    expected = f"^conversations is of type {type(conversations).__name__}: expected a list of messages"
    with pytest.raises(InvalidRequest, match=expected):
        object.__new__(VLM).generate_batch(conversations)


@pytest.mark.parametrize("conversations", [[], (), iter([])])
def test_no_conversations(conversations: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"^no conversations: expected at least one$"):
        object.__new__(VLM).generate_batch(conversations)


def test_outputs_of_one_row_of_tensors() -> None:
    vlm, echo = echo_vlm()
    found = vlm.run_tensors({"input_ids": np.array([[4, 5, 6]])}, max_new_tokens=3)
    assert {name: value.shape for name, value in found.items()} == {
        "logits": (1, 10),
        "decode_logits": (2, 1, 10),
        "decode_tokens": (3,),
        "cache_lengths": (4,),
        "kept_index_stage1": (3,),
        "kept_index_stage2": (3,),
    }
    assert found["cache_lengths"].tolist() == [3] * 4 and len(echo.calls) == 3
    assert found["decode_tokens"].dtype == found["cache_lengths"].dtype == np.int64


def test_outputs_of_several_rows_of_tensors() -> None:
    """Padding is taken away, and the longest row decides how many tokens there are."""
    vlm, echo = echo_vlm()
    echo.longest = 64
    mask = np.ones((2, 63), np.int64)
    mask[1, :60] = 0
    found = vlm.run_tensors({"input_ids": np.full((2, 63), 4), "attention_mask": mask}, max_new_tokens=5)
    assert found["logits"].shape == (2, 10) and found["decode_logits"].shape == (1, 2, 10)
    assert found["decode_tokens"].tolist() == [[0, 0], [0, 0]]
    assert found["cache_lengths"].tolist() == [[63] * 4, [3] * 4]
    assert [len(found[f"row{row}_kept_index_stage2"]) for row in (0, 1)] == [63, 3]


def test_no_rows_of_tensors() -> None:
    vlm, _ = echo_vlm()
    with pytest.raises(InvalidRequest, match=r"^input_ids has no rows: expected at least one$"):
        vlm.run_tensors({"input_ids": np.zeros((0, 3), np.int64)})
    with pytest.raises(InvalidRequest, match=r"^tensors is of type list: expected a dict of names and arrays$"):
        vlm.run_tensors([])  # type: ignore[arg-type]


@pytest.mark.parametrize(("method", "runs"), [("fastmmoe", 1), ("random", 1), ("sparsevlm", 2), (None, 1)])
def test_rows_share_calls_but_by_sparsevlm(method: str | None, runs: int) -> None:
    vlm, echo = echo_vlm()
    layers: dict[Any, tuple[int, ...]] = {"fastmmoe": (1,), "random": (1,), "fastv": (2,), "sparsevlm": (1,)}
    policy = replace(vlm.manifest.policy, method="all", prune_layers=layers, stage_exponents=(1.0,))
    vlm.manifest, echo.policy = replace(vlm.manifest, policy=policy), policy
    ids = {"input_ids": np.full((2, 5), 4)}
    made = [len(group) for group in vlm.groups(vlm.processor.from_tensors(ids), RequestOptions(method=method))]
    assert made == [2 // runs] * runs


@pytest.mark.parametrize(("said", "reason"), [("Yes", "length"), ("Y\u00e9", "length"), ("", "stop")])
def test_why_an_answer_ended(said: str, reason: str, processor: MakeProcessor) -> None:
    """By the tokens that were left, or by a token that ends answers."""
    make = processor("internvl-qwen3moe")
    ids = [*said.encode()] or [make.config.stop_token_ids[0]]
    run: Any = ScriptedRun([ids], [], [[]], [len(ids)])
    vlm, _ = echo_vlm(make)
    (*earlier, last) = [one for _, one in vlm.pieces(run)]
    assert all(one.finish_reason is None for one in earlier) and last.finish_reason == reason
    assert "".join(one.text for one in (*earlier, last)) == said


def test_messages_become_one_request(processor: MakeProcessor, monkeypatch: pytest.MonkeyPatch) -> None:
    make, given = processor("internvl-qwen3moe"), []

    def run_of(_manifest: Any, _backend: Any, inputs: list[Any], options: Any, *_: Any, **__: Any) -> ScriptedRun:
        given.append((len(inputs), options))
        return ScriptedRun([[*b"ok"] for _ in inputs], inputs, [[] for _ in inputs], [2] * len(inputs))

    monkeypatch.setattr("fastmmoe.runtime.vlm.Run", run_of)
    vlm, _ = echo_vlm(make)
    question = [{"role": "user", "content": "Hi"}]
    assert vlm.generate(question, alpha=0.25).text == "ok"
    assert [answer.text for answer in vlm.generate_batch([question, question])] == ["ok", "ok"]
    assert [count for count, _ in given] == [1, 2] and given[0][1].alpha == 0.25
    with pytest.raises(InvalidRequest, match="temperatur"):
        vlm.generate(question, temperatur=0.5)


@pytest.mark.parametrize("options", [{"stop": "a"}, {"logprobs": 0}, {"choices": ["a"]}, {"deadline_ms": 9}])
def test_tensors_have_no_text_and_no_end_but_their_count(options: dict[str, Any]) -> None:
    vlm, _ = echo_vlm()
    with pytest.raises(InvalidRequest, match=f"^tensors are answered .*: leave out {next(iter(options))}$"):
        vlm.run_tensors({"input_ids": np.array([[4, 5, 6]])}, **options)


QUESTION = [{"role": "user", "content": "Hi"}]


def asked(monkeypatch: pytest.MonkeyPatch, make: Processor) -> tuple[VLM, list[Any]]:
    """A model whose runs say "ok", and what they are given: inputs, options, ending."""
    given: list[Any] = []

    def run_of(_manifest: Any, _backend: Any, inputs: list[Any], options: Any, *_: Any, **others: Any) -> ScriptedRun:
        given.append((inputs, options, others.get("ending")))
        return ScriptedRun([[*b"ok"] for _ in inputs], inputs, [[] for _ in inputs], [2] * len(inputs))

    monkeypatch.setattr("fastmmoe.runtime.vlm.Run", run_of)
    return echo_vlm(make)[0], given


def test_a_request_before_those_that_count(processor: MakeProcessor, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture of one tile where none is given; a few tokens, whatever the deadline."""
    vlm, given = asked(monkeypatch, processor("internvl-qwen3moe"))
    vlm.warm_up()
    vlm.warm_up(QUESTION, temperature=0.5, deadline_ms=1, max_new_tokens=99)
    (pictured, first, _), (text, second, ending) = given
    assert (len(pictured[0].tile_counts), len(text[0].tile_counts)) == (1, 0)
    assert (first.max_new_tokens, second.max_new_tokens, second.temperature, ending.deadline) == (3, 3, 0.5, None)


def test_a_deadline_counts_from_the_call(processor: MakeProcessor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures that take long to decode are a part of the request, and so are all conversations of a batch."""
    vlm, given = asked(monkeypatch, processor("internvl-qwen3moe"))
    clock = [10.0]
    monkeypatch.setattr("fastmmoe.runtime.ending.now", lambda: clock[0])
    make, cancel = vlm.processor, threading.Event()

    def slow(messages: Any, **options: Any) -> Any:
        clock[0] += 5
        return make(messages, **options)

    slow.new_stream = make.new_stream  # type: ignore[attr-defined]
    vlm.processor = slow  # type: ignore[assignment]
    vlm.generate(QUESTION, deadline_ms=500, cancel=cancel)
    vlm.generate_batch([QUESTION, QUESTION], deadline_ms=500, cancel=cancel)
    assert [(one.deadline, one.cancel) for _, _, one in given] == [(10.5, cancel), (15.5, cancel)]
    with pytest.raises(InvalidRequest, match="cancel is of type str"):
        vlm.generate(QUESTION, cancel="now")  # type: ignore[arg-type]


def test_choices_go_behind_the_header_of_an_answer(processor: MakeProcessor) -> None:
    make = processor("internvl-gptoss")
    manifest = toy_manifest("deepseek_vl2")
    vlm, echo = echo_vlm(make)
    echo.info = replace(manifest.language_model, vocab_size=make.config.vocab_size)
    echo.longest, echo.may_rewind = 1 << 16, True
    vlm.manifest = replace(vlm.manifest, language_model=echo.info)
    answer = vlm.generate(QUESTION, choices=["ab", "b"])
    header = make.answer_header()
    prompt = [*make(QUESTION).input_ids.tolist(), *header]
    fed = [call["inputs_embeds"][:, 0].astype(int).tolist() for call in echo.calls]
    assert fed == [prompt, make.encode(["a"])]
    assert len(header) > 2 and answer.text == "b" and answer.finish_reason == "stop"
    uniform = -np.log(make.config.vocab_size)
    assert [one.log_likelihood for one in answer.choices] == pytest.approx([2 * uniform, uniform])


def test_choices_that_have_no_room(processor: MakeProcessor) -> None:
    vlm, echo = echo_vlm(processor("internvl-qwen3moe"))
    tokens = len(vlm.processor(QUESTION).input_ids)
    echo.longest = tokens + 2
    with pytest.raises(InvalidRequest, match=r"^choice 'abcd' has 4 tokens, the model's positions leave 3 after"):
        vlm.generate_stream(QUESTION, choices=["a", "abcd"])
    assert not echo.calls


def test_ids_go_on_to_the_stop_token_and_are_padded_after_it() -> None:
    """Row 0 ends at once, row 1 does not: 1 is the stop token, 2 the padding."""
    vlm, echo = echo_vlm()
    echo.logits = lambda feeds: scores_of(*[1, 3][-(len(feeds["sequence_offsets"]) - 1) :], vocab_size=10)
    ids = np.array([[9, 9, 6], [4, 5, 6]], np.int32)
    mask = np.array([[0, 0, 1], [1, 1, 1]])
    found = vlm.generate_ids(input_ids=ids, attention_mask=mask, max_new_tokens=3)
    assert found.dtype == np.int64 and found.tolist() == [[9, 9, 6, 1, 2, 2], [4, 5, 6, 3, 3, 3]]


def test_without_a_padding_token_the_stop_token_is_it() -> None:
    vlm, echo = echo_vlm()
    vlm.processor.config = replace(vlm.processor.config, pad_token_id=None)
    echo.logits = lambda feeds: scores_of(*[1, 3][-(len(feeds["sequence_offsets"]) - 1) :], vocab_size=10)
    found = vlm.generate_ids(input_ids=np.array([[6], [7]]), max_new_tokens=2)
    assert found.tolist() == [[6, 1, 1], [7, 3, 3]]


def test_what_is_no_tensor_is_an_option() -> None:
    vlm, _ = echo_vlm()
    ids = np.array([[4, 5]])
    with pytest.raises(InvalidRequest, match=r"^retention 3: expected a number"):
        vlm.generate_ids(input_ids=ids, retention=3)
    with pytest.raises(InvalidRequest, match=r"^tensors are answered .*: leave out stop$"):
        vlm.generate_ids(input_ids=ids, stop="x")
    with pytest.raises(InvalidRequest, match=r"missing none; unknown pixels; expected input_ids"):
        vlm.generate_ids(input_ids=ids, pixels=ids)


def test_a_bundle_of_a_repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []

    def bundle_of(name: str, revision: str | None) -> Path:
        asked.append((name, revision))
        return tmp_path / "nothing"

    monkeypatch.setattr("fastmmoe.runtime.vlm.bundle_of", bundle_of)
    with pytest.raises(InvalidRequest, match=r"^provider 'npu': expected one of"):
        VLM.from_pretrained("a/b", revision="v1", provider="npu")
    assert asked == [("a/b", "v1")]
