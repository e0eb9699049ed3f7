# SPDX-License-Identifier: Apache-2.0
"""Optimisation profiles: by hand for small models, and the bounds they claim against what the runtime really feeds."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from fastmmoe.runtime.backends.batch import round_up
from fastmmoe.runtime.backends.tensorrt.profiles import Profile, engine_profiles, resolve_limits
from fastmmoe.runtime.bundle.manifest import Limits, Manifest
from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.method.schedule import even_exponents, merge_count, plan_request
from fastmmoe.runtime.request.config import DeepseekVl2ProcessorConfig, InternVlProcessorConfig
from fastmmoe.runtime.request.deepseek_vl2 import deepseek_vl2_layout, most_visual_tokens, picture_tiles
from tests.support.manifests import toy_manifest

DEEPSEEK = DeepseekVl2ProcessorConfig(
    candidate_resolutions=((384, 384), (384, 768), (768, 384), (384, 3456), (1152, 1152)),
    patch_size=14,
    downsample_ratio=2,
    image_mean=(0.5, 0.5, 0.5),
    image_std=(0.5, 0.5, 0.5),
    pad_color=(127, 127, 127),
    global_view_first=True,
    template="deepseek",
    image_token="<image>",
    image_token_id=9,
    bos_token_id=0,
    eos_token_id=1,
    pad_token_id=2,
    special_tokens=("<image>",),
    stop_token_ids=(1,),
    vocab_size=10,
    max_position_embeddings=4096,
)
INTERNVL = InternVlProcessorConfig(
    tile_size=448,
    tokens_per_tile=256,
    min_tiles=1,
    max_tiles=12,
    use_thumbnail=True,
    image_mean=(0.5, 0.5, 0.5),
    image_std=(0.5, 0.5, 0.5),
    template="internvl2_5",
    image_token="<IMG_CONTEXT>",
    image_start_token="<img>",
    image_end_token="</img>",
    image_token_id=9,
    bos_token_id=None,
    pad_token_id=None,
    stop_token_ids=(1,),
    vocab_size=10,
    max_position_embeddings=40960,
)
LIMITS = Limits(max_tokens=600, max_visual=360, max_cache=900, max_tiles=4, max_batch=1)
SMALL = Limits(max_tokens=100, max_visual=60, max_cache=150, max_tiles=4, max_batch=1)


LANGUAGE_MODEL = {
    "query_key_dim": 5,
    "value_dim": 5,
    "rope_dim": 5,
    "cache_shape": (2, 5),
    "moe_intermediate_size": 16,
}


def manifest(
    processor: DeepseekVl2ProcessorConfig | InternVlProcessorConfig,
    *,
    prune_layers: tuple[int, ...] = (1, 2),
    window: int = 3,
    **language_model: Any,
) -> Manifest:
    """A model of four layers, hidden size 8; by default with two prune layers and key-value caches of 2 x 5."""
    small = toy_manifest("deepseek_vl2")
    policy = replace(
        small.policy,
        method="fastmmoe" if prune_layers else "none",
        prune_layers={"fastmmoe": prune_layers} if prune_layers else {},
        stage_exponents=even_exponents(len(prune_layers)),
        retention=0.25,
        merge_ratio=0.25,
        window=window,
    )
    info = replace(small.language_model, **(LANGUAGE_MODEL | language_model))
    return replace(
        small,
        family="deepseek_vl2" if isinstance(processor, DeepseekVl2ProcessorConfig) else "internvl3_5",
        target="rtx",
        activation_dtype="float16",
        cache_dtype="float16",
        policy=policy,
        processor=processor,
        language_model=info,
    )


def test_profiles_of_a_small_model() -> None:
    vision, embedding, (prefill, decode) = engine_profiles(manifest(INTERNVL), LIMITS).values()
    assert vision == ({"pixel_values": ((1, 3, 448, 448), (2, 3, 448, 448), (4, 3, 448, 448))},)
    assert embedding == ({"input_ids": ((1,), (244,), (600,))},)
    # A typical request: 180 visual tokens of 360, 64 of text; retention 0.25 keeps 90, then 45; K = 240 allows 60
    # windows.
    tokens, empty, slots = ((1,), (244,), (600,)), ((0,), (0,), (0,)), (360,)
    # One sequence at a time.
    sites = [f"{name}_offsets.{s}" for s in (0, 1) for name in ("keep", "merge")]
    offsets = dict.fromkeys(["sequence_offsets", "visual_offsets", *sites], ((2,), (2,), (2,)))
    # Rows after each site, 244, 154 and 109, and 64 of the answer, in multiples of 256; 900 are 1024.
    caches: Profile = {
        f"past_key_values.{layer}.{part}": ((1, 2, 256, 5), (1, 2, typical, 5), (1, 2, 1024, 5))
        for layer, typical in enumerate((512, 512, 256, 256))
        for part in ("key", "value")
    }
    caches |= {f"past_lengths.{group}": ((1,), (1,), (1,)) for group in range(3)}
    step = ((1,), (1,), (1,))
    assert prefill == {
        "inputs_embeds": ((1, 8), (244, 8), (600, 8)),
        "position_ids": tokens,
        "sequence_ids": tokens,
        "visual_index": ((0,), (180,), slots),
        **offsets,
        "keep_slots.0": ((0,), (90,), slots),
        "merge_slots.0": ((0,), (22,), (60,)),
        "keep_slots.1": ((0,), (45,), slots),
        "merge_slots.1": ((0,), (11,), (60,)),
        **caches,
    }
    assert decode == {
        "inputs_embeds": ((1, 8), (1, 8), (1, 8)),
        "position_ids": step,
        "sequence_ids": step,
        **offsets,
        **dict.fromkeys(("visual_index", "keep_slots.0", "merge_slots.0", "keep_slots.1", "merge_slots.1"), empty),
        **caches,
    }


def test_several_sequences_at_once() -> None:
    """Prompts of one call share its tokens; a decode step has a token of each sequence."""
    model, several = manifest(INTERNVL), replace(LIMITS, max_batch=8)
    one, (prefill, decode) = (engine_profiles(model, limits)["language_model"] for limits in (LIMITS, several))
    with_offsets = {name for name in prefill if "_offsets" in name}
    assert with_offsets == {"sequence_offsets", "visual_offsets"} | {
        f"{name}_offsets.{s}" for name in ("keep", "merge") for s in (0, 1)
    }
    with_caches = {name for name in prefill if name.startswith("past_")}
    for profile, before in ((prefill, one[0]), (decode, one[1])):
        assert {name: profile[name] for name in with_offsets} == dict.fromkeys(with_offsets, ((2,), (2,), (9,)))
        assert profile["past_lengths.2"] == ((1,), (1,), (8,))
        assert profile["past_key_values.3.key"] == ((1, 2, 256, 5), (1, 2, 256, 5), (8, 2, 1024, 5))
        for name in with_caches:
            smallest, typical, (_, *rest) = before[name]
            assert profile[name] == (smallest, typical, (8, *rest))
    others = prefill.keys() - with_offsets - with_caches
    assert {name: prefill[name] for name in others} == {name: one[0][name] for name in others}
    assert decode["inputs_embeds"] == ((1, 8), (1, 8), (8, 8))
    assert decode["position_ids"] == decode["sequence_ids"] == ((1,), (1,), (8,))
    assert decode["visual_index"] == decode["keep_slots.1"] == ((0,), (0,), (0,))


def test_a_small_cache_has_the_least_capacity() -> None:
    for profile in engine_profiles(manifest(INTERNVL), SMALL)["language_model"]:
        assert profile["past_key_values.0.key"] == ((1, 2, 256, 5),) * 3


@pytest.mark.parametrize("max_cache", [900, 1024, 1025])
def test_capacities_hold_what_a_batch_asks_for(max_cache: int) -> None:
    """Prompt and answer together up to max_cache, whatever is left of the prompt."""
    limits = replace(LIMITS, max_cache=max_cache)
    for profile in engine_profiles(manifest(INTERNVL), limits)["language_model"]:
        for layer in range(4):
            smallest, typical, greatest = (shape[2] for shape in profile[f"past_key_values.{layer}.key"])
            asked = {round_up(rows) for rows in range(1, max_cache + 1)}
            assert (min(asked), max(asked)) == (smallest, greatest) and typical in asked


def test_deepseek_has_a_layout_and_latent_caches() -> None:
    model = manifest(DEEPSEEK, cache_parts=("latent",), cache_shape=(1, 40))
    (vision,), _, phases = engine_profiles(model, LIMITS).values()
    assert vision["layout_index"] == ((1,), (180,), (360,))
    assert vision["pixel_values"][2] == (4, 3, 384, 384)
    for profile in phases:
        assert profile["past_key_values.0.latent"] == ((1, 1, 256, 40), (1, 1, 512, 40), (1, 1, 1024, 40))
        assert profile["past_key_values.3.latent"] == ((1, 1, 256, 40), (1, 1, 256, 40), (1, 1, 1024, 40))


def test_sliding_layers_have_positions_by_group() -> None:
    model = manifest(INTERNVL, prune_layers=(1, 3), sliding_layers=(0, 2), sliding_window=4)
    _, _, phases = engine_profiles(model, LIMITS).values()
    for profile in phases:
        # The last layer prunes, so there are two groups and not three.
        assert {name for name in profile if "position_ids" in name} == {
            "position_ids",
            "past_position_ids.0",
            "past_position_ids.1",
        }
        assert profile["past_position_ids.0"] == ((1, 256), (1, 512), (1, 1024))
        assert profile["past_position_ids.1"] == ((1, 256), (1, 256), (1, 1024))
    alone = manifest(INTERNVL, prune_layers=(1,), sliding_layers=(0,), sliding_window=4)
    (prefill, _) = engine_profiles(alone, LIMITS)["language_model"]
    assert [g for g in range(2) if f"past_position_ids.{g}" in prefill] == [0]


def test_every_method_has_its_inputs() -> None:
    """Most of a site of sparsevlm: all of 360 dropped, 109 of them recycled into 11 vectors."""
    model = manifest(INTERNVL)
    layers = {"fastmmoe": (1,), "random": (1,), "fastv": (1,), "sparsevlm": (1, 2)}
    model = replace(model, policy=replace(model.policy, method="all", prune_layers=layers))
    _, _, phases = engine_profiles(model, LIMITS).values()
    prefill, decode = phases
    assert prefill.keys() == decode.keys()
    assert prefill["random_scores"] == prefill["visual_index"]
    assert prefill["rater_slots"] == ((0,), (64,), (600,))
    # Sites: fastv, fastmmoe with random, then sparsevlm twice.
    assert [s for s in range(4) if f"merge_slots.{s}" in prefill] == [1, 2, 3]
    assert [s for s in range(4) if f"merge_offsets.{s}" in prefill] == [1]
    assert [s for s in range(4) if f"recycle_slots.{s}" in prefill] == [2, 3]
    assert (prefill["recycle_slots.2"][2], prefill["merge_slots.2"][2]) == ((109,), (11,))
    assert [s for s in range(4) if f"past_lengths.{s}" in prefill] == [0, 1, 2, 3]
    assert all(shape == ((0,), (0,), (0,)) for name, shape in decode.items() if "slots" in name)


def test_without_fastmmoe_there_are_no_slots() -> None:
    _, _, phases = engine_profiles(manifest(INTERNVL, prune_layers=()), LIMITS).values()
    for profile in phases:
        assert not [name for name in profile if "slots" in name]
        assert len(profile) == 5 + 8 + 1


@pytest.mark.parametrize("window", [1, 2, 3, 7])
@pytest.mark.parametrize("processor", [DEEPSEEK, INTERNVL])
def test_ranges_ascend_and_hold_every_request(processor: Any, window: int) -> None:
    model = manifest(processor, window=window)
    _, _, phases = engine_profiles(model, SMALL).values()
    for profile in phases:
        for name, (smallest, typical, greatest) in profile.items():
            assert all(a <= b <= c for a, b, c in zip(smallest, typical, greatest, strict=True)), name
    bound = {name: shapes[2][0] for name, shapes in phases[0].items()}
    for visual in range(SMALL.max_visual + 1):
        for retention in (0.01, 0.1, 0.3, 0.5, 0.6, 0.75, 0.9, 1.0):
            schedule = plan_request(
                model.policy, visual_tokens=visual, moe_layers=(1, 2, 3), top_k=4, retention=retention
            )
            assert all(keep <= bound[f"keep_slots.{s}"] for s, keep in enumerate(schedule.keep))
            assert all(merge <= bound[f"merge_slots.{s}"] for s, merge in enumerate(schedule.merge))
    # No bound to spare: some retention merges that many.
    merged = [merge_count(60, keep, model.policy.merge_ratio, window) for keep in range(1, 61)]
    assert bound["merge_slots.0"] == max(merged)


def test_default_limits() -> None:
    # InternVL: 12 tiles and a thumbnail. DeepSeek-VL2: nine tiles and the global view.
    assert resolve_limits(manifest(INTERNVL)) == Limits(
        max_tokens=3840, max_visual=3328, max_cache=4352, max_tiles=13, max_batch=1
    )
    assert resolve_limits(manifest(DEEPSEEK)) == Limits(
        max_tokens=2617, max_visual=2105, max_cache=3129, max_tiles=10, max_batch=1
    )


def test_given_limits_move_the_others() -> None:
    model = manifest(INTERNVL)
    assert resolve_limits(model, max_tiles=2) == Limits(
        max_tokens=1024, max_visual=512, max_cache=1536, max_tiles=2, max_batch=1
    )
    assert resolve_limits(model, max_tokens=700) == Limits(
        max_tokens=700, max_visual=700, max_cache=1212, max_tiles=13, max_batch=1
    )
    assert resolve_limits(model, max_visual=100) == Limits(
        max_tokens=612, max_visual=100, max_cache=1124, max_tiles=13, max_batch=1
    )
    # Sequences share the tokens of a call, so their number moves no other limit.
    assert resolve_limits(model, max_batch=8) == replace(resolve_limits(model), max_batch=8)
    assert resolve_limits(model, max_tokens=9, max_visual=9, max_batch=9).max_batch == 9
    # Nothing is longer than the model's longest sequence: 40 x 256 > 4096 here.
    short = manifest(
        InternVlProcessorConfig(
            **{f: getattr(INTERNVL, f) for f in INTERNVL.__struct_fields__} | {"max_position_embeddings": 4096}
        )
    )
    assert resolve_limits(short, max_tiles=40) == Limits(
        max_tokens=4096, max_visual=4096, max_cache=4096, max_tiles=40, max_batch=1
    )


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"max_tokens": 0}, "--max-tokens 0: expected at least 1"),
        ({"max_visual": -1}, "--max-visual -1: expected at least 1"),
        ({"max_cache": 0}, "--max-cache 0: expected at least 1"),
        ({"max_tiles": 0}, "--max-tiles 0: expected at least 1"),
        ({"max_batch": 0}, "--max-batch 0: expected at least 1"),
        (
            {"max_tokens": 9, "max_visual": 9, "max_batch": 10},
            "--max-batch 10: expected at most --max-tokens, 9: each sequence has a row",
        ),
        ({"max_tokens": 50, "max_visual": 51}, "--max-visual 51: expected at most --max-tokens, 50"),
        ({"max_cache": 100}, "--max-cache 100: expected at least --max-tokens, 3840"),
        ({"max_cache": 40961}, "--max-cache 40961: expected at most 40960, the model's longest sequence"),
        ({"max_tokens": 40961, "max_cache": 40962}, "--max-cache 40962: expected at most 40960"),
    ],
)
def test_limits_that_cannot_be(limits: dict[str, int], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        resolve_limits(manifest(INTERNVL), **limits)


def test_visual_tokens_bound_every_combination_of_pictures() -> None:
    grids = [(width // 384, height // 384) for width, height in DEEPSEEK.candidate_resolutions]
    assert picture_tiles(DEEPSEEK) == 1 + max(wide * high for wide, high in grids)
    for pictures in ([grid] * count for grid in grids for count in (1, 2, 3)):
        tiles = sum(1 + wide * high for wide, high in pictures)
        visual = len(deepseek_vl2_layout(pictures, DEEPSEEK.grid_side, global_view_first=True))
        assert visual <= most_visual_tokens(DEEPSEEK, tiles)
    # Pictures of a single column have that many.
    assert len(deepseek_vl2_layout([(1, 9)], 14, global_view_first=True)) == most_visual_tokens(DEEPSEEK, 10) - 4
    assert len(deepseek_vl2_layout([(1, 1)], 14, global_view_first=True)) == most_visual_tokens(DEEPSEEK, 2)
