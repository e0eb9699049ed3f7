# SPDX-License-Identifier: Apache-2.0
"""Requests at the edges: one token, no picture, nothing but picture, many tiles, one survivor; and how answers end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from PIL import Image

from fastmmoe.runtime.bundle.manifest import read_manifest, write_manifest
from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.generation import RequestStats
from fastmmoe.runtime.types import Array
from fastmmoe.runtime.vlm import VLM
from tests.support.messages import question

Tensors = dict[str, Array]

SMALL = "dsvl2-small"
MHA = "dsvl2-mha"
GPT_OSS = "internvl-gptoss"
ATOL = 2e-5  # float32, the same arithmetic in another order
ONE_TILE = 421  # visual tokens of a DeepSeek-VL2 picture of one local tile
TEXT_TOKEN = 7


def picture(width: int, height: int, seed: int = 0) -> Array:
    """Blocks of colour, uint8 [height, width, 3]."""
    blocks = np.random.default_rng(seed).integers(0, 256, (-(-height // 32), -(-width // 32), 3), dtype=np.uint8)
    return blocks.repeat(32, axis=0).repeat(32, axis=1)[:height, :width]


def visual_tensors(vlm: VLM, positions: Array, length: int) -> Tensors:
    """DeepSeek-VL2's tensors of one picture whose visual tokens stand at the given positions."""
    token = vlm.manifest.processor.image_token_id
    ids, mask = np.full((1, length), TEXT_TOKEN), np.zeros((1, length), bool)
    ids[0, positions], mask[0, positions] = token, True
    pixels = vlm.processor(ask_about(picture(380, 384))).vision_inputs["pixel_values"][None]
    return {"input_ids": ids, "images_seq_mask": mask, "images_spatial_crop": np.array([[[1, 1]]]), "images": pixels}


def ask_about(image: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image", "image": image}]}]


def native_and_portable(vlm: Callable[..., VLM], tensors: Tensors, **options: Any) -> Tensors:
    """The native outputs, after the portable ones were found equal."""
    native, portable = (vlm(SMALL, portable=p).run_tensors(tensors, **options) for p in (False, True))
    for name, array in native.items():
        np.testing.assert_allclose(portable[name], array, rtol=0, atol=ATOL, err_msg=name)
    return native


def edit_processor(directory: Path, **changes: Any) -> None:
    manifest = read_manifest(directory)
    write_manifest(directory, replace(manifest, processor=replace(manifest.processor, **changes)))


def check_stats(stats: RequestStats, model: VLM, tokens: int) -> None:
    """The counts of a request agree with each other and with the bundle."""
    info, policy = model.manifest.language_model, model.manifest.policy
    visible = (stats.visual_tokens, *stats.kept_visual_tokens)
    assert list(visible) == sorted(visible, reverse=True)
    after = [sum(layer > prune for prune in policy.prune_layers["fastmmoe"]) for layer in range(info.layers)]
    assert stats.cache_lengths == [stats.text_tokens + visible[stage] for stage in after]
    assert [len(kept) for kept in stats.kept_index] == [stats.text_tokens + kept for kept in visible[1:]]
    assert all(np.isin(b, a).all() for a, b in zip(stats.kept_index, stats.kept_index[1:], strict=False))
    assert len(stats.visual_top_k) == len(info.moe_layers)
    assert len(stats.decode_ms) == tokens - 1
    assert stats.pruning_rate == 1 - stats.retention
    assert stats.ttft_ms == stats.preprocess_ms + stats.vision_ms + stats.prefill_ms > 0
    assert 0 <= stats.flops_reduction < 1
    if stats.visual_tokens and stats.retention < 1:
        assert stats.prefill_flops < stats.prefill_flops_unmodified
    assert (stats.vision_flops > 0) == (stats.tiles > 0) == (stats.visual_tokens > 0)


@pytest.mark.engines
@pytest.mark.parametrize("name", [MHA, GPT_OSS])
def test_sequence_of_one_token(name: str, vlm: Callable[..., VLM], assert_close: Callable[..., None]) -> None:
    model = vlm(name)
    ids = {"input_ids": np.array([[TEXT_TOKEN]], np.int32)}
    expected = model.run_tensors(ids, retention=1.0, max_new_tokens=3)
    found = model.run_tensors(ids, retention=0.1, max_new_tokens=3)
    assert found["cache_lengths"].tolist() == [1] * model.manifest.language_model.layers
    assert found["kept_index_stage3"].tolist() == [0]
    for key, array in expected.items():
        np.testing.assert_array_equal(found[key], array, err_msg=key)
    # Decoding from the cache is the prefill of the longer sequence.
    longer = {"input_ids": np.array([[TEXT_TOKEN, int(found["decode_tokens"][0])]], np.int32)}
    whole = model.run_tensors(longer, max_new_tokens=1)["logits"]
    assert_close("logits", found["decode_logits"][0], whole, model.manifest.language_model.layers)


@pytest.mark.engines
@pytest.mark.parametrize("name", [MHA, GPT_OSS])
def test_no_picture(name: str, vlm: Callable[..., VLM]) -> None:
    model = vlm(name)
    answers = [model.generate(question("Say hello."), retention=r, max_new_tokens=5) for r in (1.0, 0.25)]
    assert answers[0].token_ids == answers[1].token_ids
    stats = answers[1].stats
    check_stats(stats, model, len(answers[1].token_ids))
    assert stats.visual_tokens == stats.tiles == stats.flops_reduction == 0
    assert stats.kept_visual_tokens == stats.merged_vectors == (0, 0, 0)


def test_nothing_but_visual_tokens(vlm: Callable[..., VLM]) -> None:
    tensors = visual_tensors(vlm(SMALL), np.arange(ONE_TILE), ONE_TILE)
    unmodified = native_and_portable(vlm, tensors, retention=1.0, max_new_tokens=2)
    assert unmodified["cache_lengths"].tolist() == [ONE_TILE] * 3
    pruned = native_and_portable(vlm, tensors, retention=0.5, max_new_tokens=2)
    assert pruned["cache_lengths"].tolist() == [ONE_TILE, ONE_TILE, int(ONE_TILE * 0.5**0.5)]
    assert len(pruned["kept_index_stage2"]) == int(ONE_TILE * 0.5)


@pytest.mark.engines
def test_one_survivor(vlm: Callable[..., VLM]) -> None:
    model = vlm(MHA)
    answer = model.generate(question("OCR.", picture(300, 260)), retention=1e-9, max_new_tokens=3)
    check_stats(answer.stats, model, 3)
    assert answer.stats.visual_tokens == ONE_TILE
    assert answer.stats.kept_visual_tokens == (1, 1, 1)
    assert answer.stats.merged_vectors == (0, 0, 0)


def test_runs_shorter_than_the_window(vlm: Callable[..., VLM]) -> None:
    # Every visual token stands between two text tokens: windows of one.
    tensors = visual_tensors(vlm(SMALL), np.arange(0, 2 * ONE_TILE, 2), 2 * ONE_TILE)
    found = native_and_portable(vlm, tensors, retention=0.3, max_new_tokens=2)
    kept = found["kept_index_stage2"]
    assert np.isin(np.arange(1, 2 * ONE_TILE, 2), kept).all()
    assert len(kept) == ONE_TILE + int(ONE_TILE * 0.3)


@pytest.mark.engines
def test_window_longer_than_the_picture(bundle: Callable[..., Path], vlm: Callable[..., VLM]) -> None:
    model = VLM(bundle(SMALL, "--prune-layers", "1", "--window", "64", "--merge-ratio", "1"))
    scattered = np.concatenate([np.arange(10 * i, 10 * i + 7) for i in range(ONE_TILE // 7)] + [np.array([900])])
    found = model.run_tensors(visual_tensors(model, scattered, 901), retention=0.5, max_new_tokens=1)
    assert len(found["kept_index_stage1"]) == 901 - ONE_TILE + int(ONE_TILE * 0.5)
    assert np.isfinite(found["logits"]).all()


@pytest.mark.engines
@pytest.mark.parametrize(("count", "tiles", "visual"), [(2, 12, 2452), (3, 6, 3 * ONE_TILE)])
def test_several_deepseek_pictures(count: int, tiles: int, visual: int, vlm: Callable[..., VLM]) -> None:
    # Two pictures are tiled (2x2 and 2x3), three are not.
    model = vlm(MHA)
    pictures = [picture(700, 500), picture(420, 980, 1), picture(300, 260, 2)][:count]
    answer = model.generate(question("Compare.", *pictures), retention=0.25, max_new_tokens=2)
    check_stats(answer.stats, model, 2)
    assert (answer.stats.tiles, answer.stats.visual_tokens) == (tiles, visual)
    assert answer.stats.kept_visual_tokens[-1] == int(visual * 0.25)


@pytest.mark.engines
def test_several_internvl_pictures(vlm: Callable[..., VLM]) -> None:
    model = vlm(GPT_OSS)
    pictures = [picture(300, 260, seed) for seed in range(3)]
    answers = [model.generate(question("Compare.", *pictures[:n]), max_new_tokens=2) for n in (2, 3)]
    for n, answer in zip((2, 3), answers, strict=True):
        check_stats(answer.stats, model, 2)
        assert (answer.stats.tiles, answer.stats.visual_tokens) == (n, 256 * n)


@pytest.mark.engines
def test_nine_tiles_in_a_row(vlm: Callable[..., VLM]) -> None:
    model = vlm(MHA)
    answer = model.generate(question("Read.", picture(3456, 384)), retention=0.2, max_new_tokens=2)
    check_stats(answer.stats, model, 2)
    assert (answer.stats.tiles, answer.stats.visual_tokens) == (10, 1989)


@pytest.mark.engines
@pytest.mark.parametrize(("name", "tiles"), [(MHA, (2, 3, 5)), (GPT_OSS, (1, 3, 4))])
def test_max_tiles(name: str, tiles: tuple[int, ...], vlm: Callable[..., VLM]) -> None:
    # DeepSeek-VL2 adds a global tile to every grid, InternVL to those of more than one tile.
    model, messages = vlm(name), question("a", picture(1000, 500))
    counts = [model.processor(messages, max_tiles=limit).tile_counts[0] for limit in (1, 2, 4)]
    assert counts[0] == tiles[0] and counts[1] == tiles[1] and counts[2] <= tiles[2]
    answer = model.generate(messages, max_tiles=1, max_new_tokens=2)
    check_stats(answer.stats, model, 2)
    assert answer.stats.tiles == tiles[0]
    with pytest.raises(InvalidRequest, match=r"max_tiles 0: expected at least 1"):
        model.generate(messages, max_tiles=0)


@pytest.mark.engines
def test_path_pil_and_array_are_one_picture(vlm: Callable[..., VLM], tmp_path: Path) -> None:
    array = picture(300, 260)
    path = tmp_path / "picture.png"
    Image.fromarray(array).save(path)
    given = (str(path), path, Image.open(path), array)
    answers = [vlm(SMALL).generate(question("OCR.", image), max_new_tokens=6) for image in given]
    assert len({answer.token_ids for answer in answers}) == 1
    assert all(np.array_equal(a.stats.kept_index[1], answers[0].stats.kept_index[1]) for a in answers)
    other = vlm(SMALL).generate(question("OCR.", picture(300, 260, 1)), max_new_tokens=6)
    assert not np.array_equal(other.stats.kept_index[1], answers[0].stats.kept_index[1])


@pytest.mark.engines
@pytest.mark.parametrize("name", [MHA, GPT_OSS])
def test_left_padding_of_a_single_row(
    name: str, vlm: Callable[..., VLM], case_tensors: Callable[[str, str], Tensors]
) -> None:
    text = case_tensors(name, "text")
    pad = ((0, 0), (11, 0))
    padded = {key: np.pad(array, pad) for key, array in text.items()}
    assert padded["input_ids"].shape[1] == text["input_ids"].shape[1] + 11
    expected, found = (vlm(name).run_tensors(tensors, max_new_tokens=2) for tensors in (text, padded))
    for key, array in expected.items():
        np.testing.assert_array_equal(found[key], array, err_msg=key)


@pytest.mark.engines
def test_prompt_longer_than_the_model(vlm: Callable[..., VLM]) -> None:
    with pytest.raises(InvalidRequest, match=r"the sequence has \d+ tokens, 0 of them visual: .* at most 4096"):
        vlm(SMALL).generate_stream(question("a b c d " * 2000))
    tall = picture(384, 3456)
    with pytest.raises(InvalidRequest, match=r"4202 of them visual: .* at most 4096; give fewer tiles"):
        vlm(SMALL).generate(question("a", tall, tall))


@pytest.mark.engines
@pytest.mark.parametrize("name", [MHA, GPT_OSS])
def test_stream_is_the_answer_in_pieces(name: str, vlm: Callable[..., VLM]) -> None:
    model, messages = vlm(name), question("What is this?", picture(300, 260))
    answer = model.generate(messages, max_new_tokens=24)
    pieces = list(model.generate_stream(messages, max_new_tokens=24))
    assert "".join(piece.text for piece in pieces) == answer.text
    assert tuple(piece.token_id for piece in pieces) == answer.token_ids
    assert [piece.finish_reason for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert pieces[-1].finish_reason == answer.finish_reason == "length"
    # The bytes of a last character that is not complete stay out of the stream.
    whole = model.processor.decode(answer.token_ids)
    assert answer.text and whole.rstrip("\ufffd") == answer.text.rstrip("\ufffd")


def test_stop_token_ends_the_answer(own_bundle: Path) -> None:
    messages = question("What is this?", picture(300, 260))
    free = VLM(own_bundle).generate(messages, max_new_tokens=12)
    assert free.finish_reason == "length" and len(free.token_ids) == 12
    first = {token: i for i, token in reversed(list(enumerate(free.token_ids)))}
    stop, position = max(first.items(), key=lambda item: item[1])
    assert position > 0
    edit_processor(own_bundle, stop_token_ids=[stop])
    model = VLM(own_bundle)
    answer = model.generate(messages, max_new_tokens=12)
    assert answer.finish_reason == "stop"
    assert answer.token_ids == free.token_ids[: position + 1]
    assert answer.text == "".join(
        p.text for p in list(VLM(own_bundle).generate_stream(messages, max_new_tokens=position))
    )
    check_stats(answer.stats, model, position + 1)
    # Ready-made tensors decode on.
    tensors = {"input_ids": model.processor(question("b")).input_ids[None]}
    assert model.run_tensors(tensors, max_new_tokens=12)["decode_tokens"].shape == (12,)


@pytest.mark.engines
def test_max_new_tokens(vlm: Callable[..., VLM]) -> None:
    model = vlm(SMALL)
    for count in (1, 2, 7):
        answer = model.generate(question("b"), max_new_tokens=count)
        assert len(answer.token_ids) == count and answer.finish_reason == "length"
    with pytest.raises(InvalidRequest, match="max_new_tokens 0: expected at least 1"):
        model.generate(question("b"), max_new_tokens=0)


def test_answer_ends_where_the_positions_end(own_bundle: Path) -> None:
    prompt_tokens = len(VLM(own_bundle).processor(question("b")).input_ids)
    edit_processor(own_bundle, max_position_embeddings=prompt_tokens + 2)
    answer = VLM(own_bundle).generate(question("b"), max_new_tokens=64)
    # The last token is not fed back, so it needs no position.
    assert len(answer.token_ids) == 3 and answer.finish_reason == "length"


@pytest.mark.engines
@pytest.mark.parametrize("name", [MHA, "dsvl2-mla", GPT_OSS])
@pytest.mark.parametrize("retention", [1.0, 0.5, 0.1])
def test_stats_are_consistent(name: str, retention: float, vlm: Callable[..., VLM]) -> None:
    model = vlm(name)
    messages = question("Where is it?", picture(400, 400))
    answer = model.generate(messages, retention=retention, max_new_tokens=3)
    check_stats(answer.stats, model, 3)
    inputs = model.processor(messages)
    assert answer.stats.text_tokens + answer.stats.visual_tokens == len(inputs.input_ids)
    assert answer.stats.retention == retention
    info = model.manifest.language_model
    reduced = info.top_k if retention == 1 else max(1, int(info.top_k * 0.5 + 0.5))
    expected = [info.top_k if layer < 2 else reduced for layer in info.moe_layers]
    assert list(answer.stats.visual_top_k) == expected
    by_rate = model.generate(messages, pruning_rate=1 - retention, max_new_tokens=3)
    assert by_rate.token_ids == answer.token_ids
    assert by_rate.stats.kept_visual_tokens == answer.stats.kept_visual_tokens
