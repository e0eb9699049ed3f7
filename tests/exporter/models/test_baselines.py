# SPDX-License-Identifier: Apache-2.0
"""FastV against recorded outputs; all methods in one graph, packed sequences and later turns, in torch."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastmmoe.exporter.pruning.settings import PolicyOptions
from fastmmoe.runtime.bundle import graph_io
from fastmmoe.runtime.method.call import NO_VISUAL_TOKENS, Chunk, random_scores
from fastmmoe.runtime.method.policy import METHODS
from fastmmoe.runtime.method.schedule import Schedule, sparsevlm_counts
from fastmmoe.runtime.types import Array
from tests.support.torch_models import TorchModel, read_prompts

MODELS = ("dsvl2-mha", "dsvl2-mla", "internvl-qwen3moe", "internvl-gptoss")
EVERY_MODEL = pytest.mark.parametrize("name", MODELS)
PRUNING = [method for method in METHODS if method != "none"]
FASTV = {"K2_R0.5": (2, 0.5), "K3_R0.75": (3, 0.25)}
DECODE_STEPS = 4
V, BEFORE, AFTER = 60, 7, 9


@pytest.mark.parametrize("setting", FASTV)
@pytest.mark.parametrize("name", ["dsvl2-mha", "dsvl2-mla"])
def test_fastv_is_the_recorded_one(
    name: str,
    setting: str,
    golden: Path,
    torch_model: Callable[..., Any],
    assert_close: Callable[..., None],
) -> None:
    """Kept tokens, logits, greedy tokens and cache lengths of the official decoder layers with FastV's rule."""
    layer, retention = FASTV[setting]
    model = torch_model(name, (layer,), "fastv")
    (prompt,) = read_prompts(golden, name, "single")
    with np.load(golden / "baselines" / f"fastv_{name}.npz") as arrays:
        recorded = {key: arrays[f"{setting}_{key}"] for key in ("keep_idx", "decode_tokens", "cache_len")}
        logits, decode_logits = (arrays[f"{setting}_{key}"] for key in ("logits", "decode_logits"))
    schedule = model.schedule(len(prompt.visual_index), retention)
    embeds = model.embed(prompt)
    prefill = model.prefill(embeds, prompt.visual_index, schedule)
    assert prefill[graph_io.kept_index(0)].tolist() == recorded["keep_idx"].tolist()
    layers = len(model.language_model.layers)
    assert_close("logits", prefill[graph_io.LOGITS][0], logits[0, -1], layers)
    steps = model.decode(prefill, len(embeds), DECODE_STEPS, schedule)
    tokens = [int(outputs[graph_io.LOGITS].argmax()) for outputs in (prefill, *steps)]
    assert tokens == recorded["decode_tokens"].tolist()
    found = torch.stack([outputs[graph_io.LOGITS] for outputs in steps])
    assert_close("logits", found, decode_logits, layers)
    assert model.cache_lengths(steps[-1]) == recorded["cache_len"].tolist()


@pytest.fixture(scope="module")
def comparison(checkpoint: Callable[[str], Path]) -> Callable[[str], Any]:
    """Function checkpoint -> the model with every method in its graph."""
    return cache(lambda name: TorchModel(checkpoint(name), PolicyOptions(method="all")))


@pytest.fixture(scope="module")
def alone(checkpoint: Callable[[str], Path]) -> Callable[..., Any]:
    """Function (checkpoint, method) -> the model with this method alone."""
    return cache(lambda name, method: TorchModel(checkpoint(name), PolicyOptions(method=method)))


def random_prompt(model: Any, seed: int, visual: int = V, after: int = AFTER) -> tuple[torch.Tensor, Array]:
    """Embeddings of text, alike in neighbours at the visual rows, and the visual rows."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, model.model.config.vocab_size, (BEFORE + visual + after,), generator=generator)
    return model.embed_ids(ids), np.arange(BEFORE, BEFORE + visual, dtype=np.int32)


def assert_same(model: Any, ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    """Bit for bit: logits and every layer's cached rows, of a model with as many sites or more, and one with none."""
    assert torch.equal(ours[graph_io.LOGITS], theirs[graph_io.LOGITS])
    count = theirs["present_lengths.0"][0]
    assert model.cache_lengths(ours) == [count] * len(model.language_model.layers)
    for name, rows in model.cached(ours).items():
        assert torch.equal(rows, theirs[name][0, :, :count]), name


@EVERY_MODEL
def test_a_comparison_model_is_every_method_alone(name: str, comparison: Any, alone: Any) -> None:
    """Bit for bit; the unmodified model in between, too."""
    model = comparison(name)
    embeds, visual = random_prompt(model, 0)
    plain_model = alone(name, "none")
    plain = plain_model.prefill(embeds, visual, plain_model.schedule(V, 1.0))
    results = []
    for method in PRUNING:
        schedule = model.schedule(V, 0.4, method=method)
        ours = model.prefill(embeds, visual, schedule)
        single = alone(name, method)
        theirs = single.prefill(embeds, visual, single.schedule(V, 0.4))
        assert torch.equal(ours[graph_io.LOGITS], theirs[graph_io.LOGITS]), method
        assert model.cache_lengths(ours) == single.cache_lengths(theirs)
        assert len(embeds) - V <= min(model.cache_lengths(ours)) < max(model.cache_lengths(ours)) == len(embeds)
        assert_same(model, model.prefill(embeds, visual, model.schedule(V, 1.0, method="none")), plain)
        results.append(ours[graph_io.LOGITS])
    assert all(not torch.equal(a, b) for i, a in enumerate(results) for b in results[:i])


@EVERY_MODEL
def test_retention_one_is_the_unmodified_model_by_every_method(name: str, comparison: Any, alone: Any) -> None:
    model, plain = comparison(name), alone(name, "none")
    embeds, visual = random_prompt(model, 1)
    expected = plain.prefill(embeds, visual, plain.schedule(V, 1.0))
    for method in PRUNING:
        assert_same(model, model.prefill(embeds, visual, model.schedule(V, 1.0, method=method)), expected)


def test_random_keeps_the_greatest_scores_of_its_seed(comparison: Any) -> None:
    model = comparison("dsvl2-mha")
    embeds, visual = random_prompt(model, 2)
    schedule = model.schedule(V, 0.3, method="random")
    kept = {}
    for seed in (0, 1):
        outputs, rows = model.prefill(embeds, visual, schedule, seed=seed), np.arange(len(embeds))
        for site in schedule.sites:
            rows = rows[outputs[graph_io.kept_index(site)].numpy()]
            best = np.argsort(-random_scores(seed, 0, V))[: schedule.keep[site]]
            assert np.intersect1d(rows, visual).tolist() == sorted(visual[best].tolist())
        kept[seed] = rows.tolist()
    assert kept[0] != kept[1]


def test_sparsevlm_recycles_behind_the_kept_tokens(alone: Any) -> None:
    """Counts of the list scaled to floor(V R); merged vectors stand between the visual tokens and the text."""
    model = alone("dsvl2-mha", "sparsevlm")
    embeds, visual = random_prompt(model, 3)
    schedule = model.schedule(V, 0.4)
    outputs = model.prefill(embeds, visual, schedule)
    rows, before = np.arange(len(embeds)), V
    for site, keep in enumerate(schedule.keep):
        n = keep - schedule.merge[site]
        assert n == min(int((300, 200, 110)[site] * 24 / 110), before - 1)
        assert (schedule.recycle[site], schedule.merge[site]) == sparsevlm_counts(before, n)
        kept = outputs[graph_io.kept_index(site)].numpy()
        left = kept[BEFORE : BEFORE + n]
        assert kept[:BEFORE].tolist() == list(range(BEFORE)) and (np.diff(left) > 0).all()
        assert kept[BEFORE + keep :].tolist() == list(range(BEFORE + before, len(rows)))
        centres = kept[BEFORE + n : BEFORE + keep]
        assert not np.isin(centres, left).any() and ((centres >= BEFORE) & (centres < BEFORE + before)).all()
        rows, before = rows[kept], keep


@pytest.mark.parametrize("method", ["none", "fastmmoe", "random", "fastv"])
@pytest.mark.parametrize("name", ["dsvl2-mla", "internvl-gptoss"])
def test_packed_sequences_equal_single_runs(name: str, method: str, comparison: Any, assert_close: Any) -> None:
    """Three prompts of different lengths, one of text alone, and a decode step of two of them."""
    model = comparison(name)
    prompts = [random_prompt(model, 4), random_prompt(model, 5, visual=0), random_prompt(model, 6, visual=31, after=3)]
    retention = 1.0 if method == "none" else 0.4
    schedules = [model.schedule(len(visual), retention, method=method) for _, visual in prompts]
    chunks = [
        Chunk(i, embeds.numpy(), visual, schedule)
        for i, ((embeds, visual), schedule) in enumerate(zip(prompts, schedules, strict=True))
    ]
    packed = model.extend(chunks, [0, 0, 0], None)
    singles = [model.prefill(embeds, visual, s) for (embeds, visual), s in zip(prompts, schedules, strict=True)]
    expected = torch.cat([outputs[graph_io.LOGITS] for outputs in singles])
    layers = len(model.language_model.layers)
    assert_close("logits", packed[graph_io.LOGITS], expected, layers)
    embeds = model.embed_ids(torch.tensor([3, 5]))
    steps = [text_chunk(i, row, schedules[i]) for i, row in zip((0, 2), embeds, strict=True)]
    found = model.extend(steps, [len(prompts[i][0]) for i in (0, 2)], packed)
    for i, (row, got) in enumerate(zip((0, 2), found[graph_io.LOGITS], strict=True)):
        chunk = text_chunk(0, embeds[i], schedules[row])
        alone = model.extend([chunk], [len(prompts[row][0])], singles[row])
        assert_close("logits", got, alone[graph_io.LOGITS][0], layers)


def text_chunk(sequence: int, row: torch.Tensor, schedule: Schedule) -> Chunk:
    return Chunk(sequence, row[None].numpy(), NO_VISUAL_TOKENS, schedule.for_text())


@pytest.mark.parametrize("method", ["none", "random"])
@EVERY_MODEL
def test_a_second_question_equals_a_fresh_run(name: str, method: str, comparison: Any, assert_close: Any) -> None:
    """What random keeps does not depend on the text, so a fresh run of both questions keeps the same tokens."""
    model = comparison(name)
    embeds, visual = random_prompt(model, 7, after=20)
    schedule = model.schedule(V, 1.0 if method == "none" else 0.3, method=method)
    split = len(embeds) - 11
    first = model.prefill(embeds[:split], visual, schedule)
    chunk = Chunk(0, embeds[split:].numpy(), NO_VISUAL_TOKENS, schedule.for_text())
    second = model.extend([chunk], [split], first)
    fresh = model.prefill(embeds, visual, schedule)
    assert model.cache_lengths(second) == model.cache_lengths(fresh)
    assert_close("logits", second[graph_io.LOGITS], fresh[graph_io.LOGITS], len(model.language_model.layers))


@pytest.mark.parametrize("method", ["fastmmoe", "fastv"])
def test_a_second_question_equals_a_fresh_run_that_keeps_the_same(
    method: str, comparison: Any, monkeypatch: pytest.MonkeyPatch, assert_close: Any
) -> None:
    """The choice is the first question's in both: the operator is given its attention again."""
    model = comparison("dsvl2-mla")
    embeds, visual = random_prompt(model, 8, after=20)
    schedule = model.schedule(V, 0.3, method=method)
    split, attention = len(embeds) - 11, []
    operator = torch.ops.fastmmoe.token_prune

    def record(*args: Any) -> Any:
        attention.append((args[2], args[3]))
        return operator(*args)

    def replay(*args: Any) -> Any:
        p, a = attention.pop(0)
        return operator(*args[:2], p, a, *args[4:])

    monkeypatch.setattr(torch.ops.fastmmoe, "token_prune", record)
    first = model.prefill(embeds[:split], visual, schedule)
    recorded = list(attention)
    chunk = Chunk(0, embeds[split:].numpy(), NO_VISUAL_TOKENS, schedule.for_text())
    second = model.extend([chunk], [split], first)
    attention[:] = recorded
    monkeypatch.setattr(torch.ops.fastmmoe, "token_prune", replay)
    fresh = model.prefill(embeds, visual, schedule)
    assert not attention
    assert model.cache_lengths(second) == model.cache_lengths(fresh)
    assert_close("logits", second[graph_io.LOGITS], fresh[graph_io.LOGITS], len(model.language_model.layers))


def test_sparsevlm_numbers_tokens_anew_or_not(checkpoint: Any) -> None:
    """compact: the positions of a group are those of what is left; a second question goes on from there."""
    found = {}
    for positions in ("compact", "original"):
        options = PolicyOptions(method="sparsevlm", sparsevlm_positions=positions)
        model: Any = TorchModel(checkpoint("dsvl2-mha"), options)
        embeds, visual = random_prompt(model, 9)
        schedule, seen = model.schedule(V, 0.4), list[torch.Tensor]()
        for layers in model.language_model.groups:
            attention = model.language_model.layers[layers[0]].self_attn
            attention.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[1].cos))
        outputs = model.prefill(embeds, visual, schedule)
        found[positions] = seen, outputs[graph_io.LOGITS]
        angle = model.language_model.inv_freq
        last = [torch.arccos(cos[-1, 0, -1]) / angle[-1] for cos in seen]
        if positions == "compact":
            expected = [len(cos) - 1 for cos in seen]
        else:
            expected = [len(embeds) - 1] * len(seen)
        np.testing.assert_allclose(last, expected, rtol=0, atol=0.1)
    assert not torch.equal(found["compact"][1], found["original"][1])
