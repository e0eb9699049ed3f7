# SPDX-License-Identifier: Apache-2.0
"""Prompts of the check: what is fed to torch in one pass is what a backend is fed call by call."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastmmoe.exporter.check import prompts
from fastmmoe.exporter.check.prompts import DECODE_STEPS, Prompt, make_prompt, run_in
from fastmmoe.exporter.check.structure import CheckFailed
from fastmmoe.runtime.bundle import graph_io
from fastmmoe.runtime.method.schedule import Schedule, plan_request
from tests.support.manifests import toy_manifest

MANIFEST = toy_manifest("deepseek_vl2")
WIDTH = MANIFEST.language_model.hidden_size


def plan() -> Schedule:
    return plan_request(
        MANIFEST.policy, visual_tokens=8, moe_layers=(1, 2, 3), top_k=4, method="fastmmoe", retention=0.5
    )


def embed(ids: np.ndarray) -> np.ndarray:
    return np.repeat(ids.astype(np.float32)[:, None], WIDTH, axis=1)


def prompt_of(seed: int = 0) -> Prompt:
    return make_prompt(plan(), -np.ones((8, WIDTH), np.float32), embed, 10, seed)


class Counting:
    """A backend whose logits are the number of the call, and which keeps what it is fed."""

    def __init__(self) -> None:
        self.policy, self.info, self.longest = MANIFEST.policy, MANIFEST.language_model, 64
        self.fed: list[dict[str, Any]] = []
        self.next_ids, self.ahead = np.zeros(1, np.int32), 1

    def new_caches(self, sequences: int, capacities: tuple[int, ...], before: object = None) -> list[Any]:
        return []

    def extend(self, feeds: dict[str, Any], caches: list[Any], wanted: list[str]) -> dict[str, Any]:
        self.fed.append(feeds)
        kept = {graph_io.kept_index(s): np.array([len(self.fed)]) for s in range(len(self.policy.sites))}
        logits = np.full((1, 3), len(self.fed), np.float32)
        following = {
            graph_io.NEXT_IDS: self.next_ids,
            graph_io.NEXT_POSITION_IDS: feeds["position_ids"][-1:] + self.ahead,
        }
        return {graph_io.LOGITS: logits, **following, **kept}


def test_a_prompt_around_a_picture() -> None:
    prompt = prompt_of()
    assert len(prompt.embeds) == prompts.TEXT_BEFORE + 8 + prompts.TEXT_AFTER
    np.testing.assert_array_equal(prompt.visual_index, np.arange(7, 15))
    assert (prompt.embeds[prompt.visual_index] == -1).all() and (np.delete(prompt.embeds, range(7, 15), 0) >= 0).all()
    assert [step.shape for step in prompt.steps] == [(1, WIDTH)] * DECODE_STEPS
    assert not np.array_equal(prompt.embeds, prompt_of(1).embeds)


def test_calls_on_a_backend() -> None:
    """Logits of every call, survivors of the prefill."""
    found = run_in(Counting(), prompt_of())  # type: ignore[arg-type]
    assert [logits[0, 0] for logits in found.logits] == [1, 2, 3, 4]
    assert [kept.tolist() for kept in found.kept_index] == [[1]] * len(MANIFEST.policy.sites)


def test_what_the_graph_goes_on_with() -> None:
    backend = Counting()
    backend.next_ids = np.array([2], np.int32)
    with pytest.raises(CheckFailed, match=r"^language_model: next_ids is \[2\], expected \[0\]$"):
        run_in(backend, prompt_of())  # type: ignore[arg-type]
    backend = Counting()
    backend.ahead = 0
    with pytest.raises(CheckFailed, match=r"^language_model: next_position_ids is \[38\], expected \[39\]$"):
        run_in(backend, prompt_of())  # type: ignore[arg-type]


def test_each_site_has_an_alpha_of_its_own() -> None:
    backend = Counting()
    run_in(backend, prompt_of())  # type: ignore[arg-type]
    sites = len(MANIFEST.policy.sites)
    assert sites > 1 and all(len({*feeds["alpha"].tolist()}) == sites for feeds in backend.fed)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_torch_is_fed_what_a_backend_is_fed(dtype: str) -> None:
    prompt, backend = prompt_of(), Counting()
    run_in(backend, prompt)  # type: ignore[arg-type]
    calls = prompts._Feeding(backend.info, backend.policy, backend.longest, dtype).calls_of(prompt)
    assert len(calls.feeds) == len(backend.fed) == 1 + DECODE_STEPS
    for ours, theirs in zip(calls.feeds, backend.fed, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            np.testing.assert_array_equal(ours[name].numpy(), value)
    # Room for the rows of the prefill and of all steps, in the caches' type.
    key = next(name for name in calls.caches if name.endswith("key"))
    assert calls.caches[key][0][2] == 256
    assert str(calls.caches[key][1]) == f"torch.{dtype}"
