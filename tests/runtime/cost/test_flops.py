# SPDX-License-Identifier: Apache-2.0
"""FLOPs by hand for a toy of two layers, and the reductions the specification names for the real geometries."""

from __future__ import annotations

import importlib.util
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from fastmmoe.runtime.bundle.manifest import LanguageModelInfo, Manifest, VisionInfo
from fastmmoe.runtime.cost.flops import PrefillFlops, compare_prefill, count_prefill, count_request, vision_flops
from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.method.policy import Method, Policy
from fastmmoe.runtime.method.schedule import Schedule

SCRIPTS = Path(__file__).resolve().parents[3] / "scripts"
TOY = LanguageModelInfo(
    hidden_size=4,
    vocab_size=10,
    layers=2,
    heads=2,
    kv_heads=1,
    query_key_dim=3,
    value_dim=3,
    kv_lora_rank=0,
    rope_dim=3,
    cache_parts=("key", "value"),
    cache_shape=(1, 3),
    moe_layers=(1,),
    num_experts=4,
    top_k=2,
    moe_intermediate_size=5,
    shared_intermediate_size=6,
    dense_intermediate_size=7,
    sliding_layers=(),
    sliding_window=None,
)


def policy(prune_layers: dict[Method, tuple[int, ...]], **values: Any) -> Policy:
    methods = list(prune_layers)
    settings = Policy(
        method=methods[0] if len(methods) == 1 else "all",
        prune_layers=prune_layers,
        stage_exponents=(1.0,),
        retention=0.5,
        alpha=0.5,
        merge_ratio=0.05,
        window=3,
        merge="mlerp",
        visual_top_k=(1,),
        reduction_weights="preserve_sum",
        sparsevlm_positions="compact",
    )
    return msgspec.structs.replace(settings, **values)


def changed(info: LanguageModelInfo, **values: Any) -> LanguageModelInfo:
    return msgspec.structs.replace(info, **values)


# Two text and three visual tokens, of which layer 1 drops one between its attention and its MoE block.
SCHEDULE = Schedule(
    method="fastmmoe",
    retention=0.67,
    visual_tokens=3,
    keep=(2,),
    merge=(0,),
    recycle=(0,),
    sites=(0,),
    visual_top_k=(1,),
)
FASTMMOE = policy({"fastmmoe": (1,)})


def test_toy_by_hand() -> None:
    flops = count_prefill(TOY, FASTMMOE, SCHEDULE, tokens=5)
    assert flops == PrefillFlops(
        # q 4 x 6, k and v 4 x 3 each, o 6 x 4: 72 weights, 5 rows, 2 layers
        projections=2 * 72 * 5 * 2,
        # 15 pairs, 2 heads, 3 + 3 dimensions, 2 layers
        attention=2 * 15 * 2 * 6 * 2,
        # the MoE layer's 4 rows
        router=2 * 4 * 4 * 4,
        # 2 text tokens use 2 experts, 2 visual tokens 1: 6 uses of 3 matrices 4 x 5
        routed_experts=2 * 6 * 3 * 4 * 5,
        shared_experts=2 * 4 * 3 * 4 * 6,
        # layer 0, 5 rows
        dense=2 * 5 * 3 * 4 * 7,
        # the last row only
        head=2 * 4 * 10,
        # the last row of 2 heads of 3 on 5 keys, 3 x 4 x 4 router weights, 3 tokens sorted with 2 comparisons each
        pruning=2 * 2 * 3 * 5 + 2 * 3 * 4 * 4 + 3 * 2,
        # 2 layers of 2 norms of 5 rows, and that of the last row, of 4
        norms=4 * (2 * 2 * 5 + 1) * 4,
        # 2 layers, 5 rows, 2 heads of q and 1 of k, 3 dimensions
        rope=3 * 2 * 5 * 3 * 3,
        # 15 pairs of 2 heads in 2 layers, and 4 experts of 4 rows
        softmax=5 * (15 * 2 * 2 + 4 * 4),
    )
    assert flops.total == 1440 + 720 + 128 + 720 + 576 + 840 + 80


def test_fastv_shortens_the_whole_next_layer() -> None:
    """K = 1: layer 0 runs on everything, its MLP too."""
    schedule = replace(SCHEDULE, method="fastv", visual_top_k=(2,))
    flops = count_prefill(TOY, policy({"fastv": (1,)}), schedule, tokens=5)
    assert flops.projections == 2 * 72 * (5 + 4)
    assert flops.attention == 2 * (15 + 10) * 2 * 6
    assert flops.dense == 2 * 5 * 3 * 4 * 7
    assert flops.shared_experts == 2 * 4 * 3 * 4 * 6
    assert flops.pruning == 2 * 2 * 3 * 5 + 3 * 2


def test_a_comparison_bundle_prunes_where_the_method_does() -> None:
    """Sites of layer 0 after it (fastv) and of layer 1 before its MoE block (fastmmoe): only one of them drops."""
    every = policy({"fastmmoe": (1,), "fastv": (1,)})
    assert [site.point for site in every.sites] == ["output", "moe"]
    by_fastv = replace(SCHEDULE, method="fastv", keep=(2, 2), merge=(0, 0), recycle=(0, 0), sites=(0,))
    by_fastmmoe = replace(by_fastv, method="fastmmoe", keep=(3, 2), sites=(1,))
    for schedule, alone in ((by_fastv, policy({"fastv": (1,)})), (by_fastmmoe, FASTMMOE)):
        same = replace(SCHEDULE, method=schedule.method)
        assert count_prefill(TOY, every, schedule, 5) == count_prefill(TOY, alone, same, 5)


WATCHED_ROW, ROUTING, CHOOSING = 2 * 2 * 3 * 5, 2 * 3 * 4 * 4, 3 * 2


@pytest.mark.parametrize(
    ("method", "keep", "merge", "recycle", "pruning"),
    [
        ("fastmmoe", 3, 0, 0, WATCHED_ROW + ROUTING),
        # Of 3 x 4 probabilities mean, product and norm; in 2 streams of a window of 3 rows of 4 mean and norm.
        ("fastmmoe", 1, 1, 0, WATCHED_ROW + ROUTING + CHOOSING + 5 * 3 * 4 + 2 * (3 * 3 * 4 + 3 * 4)),
        ("random", 2, 0, 0, CHOOSING),
        ("random", 3, 0, 0, 0),
        # 3 visual tokens against 2 raters, their 2 rows; 2 tokens and then 1 mean of 2, of 4 numbers each.
        ("sparsevlm", 2, 1, 2, 2 * 3 * 2 * 4 + 2 * WATCHED_ROW + CHOOSING + 2 * 2 * 2 * 4 + 2 * 1 * 2 * 4),
        ("sparsevlm", 3, 0, 0, 0),
    ],
)
def test_pruning_by_hand(method: Method, keep: int, merge: int, recycle: int, pruning: int) -> None:
    schedule = replace(SCHEDULE, method=method, keep=(keep,), merge=(merge,), recycle=(recycle,))
    flops = count_prefill(TOY, policy({method: (1,)}), schedule, tokens=5)
    assert flops.pruning == pruning
    assert flops.total == count_prefill(TOY, policy({method: (1,)}), schedule, tokens=5, rater_rows=1).total


def test_raters_are_the_rows_after_the_picture() -> None:
    schedule = replace(SCHEDULE, method="sparsevlm", merge=(1,), recycle=(2,))
    one, two = (count_prefill(TOY, policy({"sparsevlm": (0,)}), schedule, 5, rows).pruning for rows in (1, 2))
    assert two - one == 2 * 3 * 4 + WATCHED_ROW


def test_a_mean_takes_no_norms() -> None:
    schedule = replace(SCHEDULE, keep=(1,), merge=(1,))
    mlerp, mean = (
        count_prefill(TOY, policy({"fastmmoe": (1,)}, merge=m), schedule, 5).pruning for m in ("mlerp", "mean")
    )
    assert mlerp - mean == 2 * (2 * 3 * 4 + 3 * 4)


def test_pruning_in_the_first_layer_shortens_the_second() -> None:
    info = changed(TOY, moe_layers=(0, 1))
    schedule = replace(SCHEDULE, visual_top_k=(2, 1))
    flops = count_prefill(info, policy({"fastmmoe": (0,)}), schedule, tokens=5)
    assert flops.projections == 2 * 72 * (5 + 4)
    assert flops.attention == 2 * (15 + 10) * 2 * 6
    assert flops.router == 2 * (4 + 4) * 4 * 4
    assert flops.routed_experts == 2 * (8 + 6) * 3 * 4 * 5
    assert flops.dense == 0


def test_latent_attention_is_counted_expanded() -> None:
    """Heads of 2 nope + 1 rope and 3 value dimensions, rank 2."""
    info = changed(TOY, kv_heads=2, kv_lora_rank=2, rope_dim=1, cache_parts=("latent",), cache_shape=(1, 3))
    flops = count_prefill(info, FASTMMOE, SCHEDULE, tokens=5)
    # q 4 x 6, latent 4 x (2 + 1), expansion 2 x 2 (2 + 3), o 6 x 4
    assert flops.projections == 2 * (24 + 12 + 20 + 24) * 5 * 2
    assert flops.attention == 2 * 15 * 2 * 6 * 2


@pytest.mark.parametrize(("window", "pairs"), [(1, 5), (2, 9), (4, 14), (5, 15), (9, 15)])
def test_sliding_layers_count_their_window(window: int, pairs: int) -> None:
    """Layer 0 slides, layer 1 has all 15 pairs."""
    info = changed(TOY, sliding_layers=(0,), sliding_window=window)
    flops = count_prefill(info, FASTMMOE, SCHEDULE, tokens=5)
    assert flops.attention == 2 * (pairs + 15) * 2 * 6


def test_text_alone_is_not_pruned() -> None:
    flops = count_prefill(TOY, FASTMMOE, SCHEDULE.for_text(), tokens=5)
    assert flops.routed_experts == 2 * (5 * 2) * 3 * 4 * 5
    assert flops.pruning == 0


def test_vision_by_hand() -> None:
    """One layer of 3 patches and a class token, joined to 1 token."""
    info = VisionInfo(
        layers=1, width=4, mlp_width=6, rows_per_tile=4, patch_inputs=12, tokens_per_tile=1, projector_inputs=16
    )
    block = 2 * 4 * (4 * 16 + 2 * 24) + 2 * (4 * 4 * 4) * 2
    assert vision_flops(info, 8, tiles=1) == 2 * 4 * 12 * 4 + block + 2 * (16 * 8 + 8 * 8)
    assert vision_flops(info, 8, tiles=3) == 3 * vision_flops(info, 8, tiles=1)


def manifest(**values: Any) -> Manifest:
    """What a manifest says to the counter; the rest of it is not read."""
    vision = VisionInfo(
        layers=1, width=4, mlp_width=6, rows_per_tile=4, patch_inputs=12, tokens_per_tile=1, projector_inputs=16
    )
    return cast(Manifest, SimpleNamespace(language_model=TOY, policy=FASTMMOE, vision=vision, **values))


def test_a_request_beside_the_unmodified_model() -> None:
    request = count_request(manifest(), tokens=5, visual_tokens=3, tiles=2, retention=0.67)
    assert (request.schedule.kept_visual_tokens, request.text_tokens, request.kept) == ((2,), 2, 2)
    assert request.prefill == count_prefill(TOY, FASTMMOE, SCHEDULE, tokens=5)
    # The unmodified MoE layer runs on all 5 rows with 2 experts each.
    assert request.unmodified.total == 1440 + 720 + 160 + 1200 + 720 + 840 + 80
    assert request.unmodified.pruning == 0
    assert request.vision == vision_flops(manifest().vision, 4, tiles=2)
    assert request.reduction == 1 - request.prefill.total / request.unmodified.total
    saved = request.unmodified.total - request.prefill.total
    assert request.reduction_with_vision == pytest.approx(saved / (request.unmodified.total + request.vision))


def test_a_request_at_retention_1_is_the_unmodified_model() -> None:
    request = count_request(manifest(), tokens=5, visual_tokens=3, retention=1.0)
    assert request.prefill.total == request.unmodified.total
    assert request.reduction == request.reduction_with_vision == 0


@pytest.mark.parametrize(("visual_top_k", "layers"), [((1, 1), 2), ((2, 1), 1), (1, 1), (2, 0)])
def test_fewer_experts_alone(visual_top_k: int | tuple[int, ...], layers: int) -> None:
    """By layer, or one number, which layer 1 does not take."""
    info = changed(TOY, layers=3, moe_layers=(1, 2))
    request = compare_prefill(info, FASTMMOE, tokens=5, visual_tokens=3, retention=1.0, visual_top_k=visual_top_k)
    saved = request.unmodified.total - request.prefill.total
    assert saved == layers * 3 * 2 * 3 * 4 * 5


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"tokens": 0, "visual_tokens": 0}, "0 tokens, 0 of them visual: expected at least one token"),
        ({"tokens": 5, "visual_tokens": 6}, "5 tokens, 6 of them visual"),
        ({"tokens": 5, "visual_tokens": -1}, "5 tokens, -1 of them visual"),
        ({"tokens": 5, "visual_tokens": 3, "tiles": -1}, "-1 tiles: expected at least 0"),
        ({"tokens": 5, "visual_tokens": 3, "method": "fastv"}, "method fastv: the bundle has none, fastmmoe"),
        ({"tokens": 5, "visual_tokens": 3, "retention": math.nan}, "retention nan: expected a number in"),
    ],
)
def test_counts_that_no_prompt_has(counts: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(message)):
        count_request(manifest(), **counts)


@pytest.fixture(scope="module")
def published() -> Iterator[dict[str, Any]]:
    """The models of scripts/published_models.py by name."""
    spec = importlib.util.spec_from_file_location("published_models", SCRIPTS / "published_models.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield {model.name: model for model in module.PUBLISHED}
    del sys.modules[spec.name]


@pytest.mark.parametrize(
    ("name", "prune_layers", "visual_tokens", "retention", "expected"),
    [
        ("InternVL3.5-30B-A3B", (5, 8, 12), 1792, 0.55, 0.550),
        ("InternVL3.5-30B-A3B", (5, 8, 12), 3328, 0.55, 0.550),
        ("InternVL3.5-30B-A3B", (5, 8, 12), 1792, 0.75, 0.43),
        ("InternVL3.5-30B-A3B", (5, 8, 12), 3328, 0.75, 0.43),
        ("DeepSeek-VL2-small", (2, 5, 8), 1023, 0.48, 0.550),
        ("DeepSeek-VL2-small", (2, 5, 8), 1023, 0.75, 0.40),
    ],
)
def test_reductions_of_the_published_geometries(
    published: dict[str, Any],
    name: str,
    prune_layers: tuple[int, ...],
    visual_tokens: int,
    retention: float,
    expected: float,
) -> None:
    """The headline of 55 % and the milder setting, with 64 text tokens; 3328 tokens are 12 tiles and a thumbnail."""
    model = published[name]
    assert model.policy.prune_layers["fastmmoe"] == prune_layers
    request = compare_prefill(
        model.info, model.policy, tokens=visual_tokens + 64, visual_tokens=visual_tokens, retention=retention
    )
    assert request.reduction == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize(
    ("name", "billions"),
    [("DeepSeek-VL2-small", 2.45), ("DeepSeek-VL2 (base)", 4.12), ("InternVL3.5-30B-A3B", 3.04)],
)
def test_published_models_have_their_active_parameters(published: dict[str, Any], name: str, billions: float) -> None:
    """A token's weights without the input embedding, as the models' cards count them: half of its FLOPs."""
    model = published[name]
    one_token = compare_prefill(model.info, model.policy, tokens=1, visual_tokens=0).unmodified
    assert (one_token.total - one_token.attention) / 2 / 1e9 == pytest.approx(billions, abs=0.01)


def test_the_document_has_these_counts() -> None:
    command = [sys.executable, str(SCRIPTS / "plot_flops.py"), "--check"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


def test_a_second_question_attends_to_the_first() -> None:
    """Two calls cost what one of all their rows does, but for the head; only sliding layers forget."""
    none = policy({})
    for info in (TOY, msgspec.structs.replace(TOY, sliding_layers=(0,), sliding_window=5)):

        def count(tokens: int, past: tuple[int, int] | None = None, info: LanguageModelInfo = info) -> PrefillFlops:
            schedule = Schedule("none", 1.0, 0, (), (), (), (), (2,))
            return count_prefill(info, none, schedule, tokens, past=past)

        first, second, whole = count(9), count(4, (9, 9)), count(13)
        assert second.attention == whole.attention - first.attention > count(4).attention
        assert first.total + second.total == whole.total + whole.head
        assert count(4, (0, 0)) == count(4)
