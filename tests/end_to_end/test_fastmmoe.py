# SPDX-License-Identifier: Apache-2.0
"""The whole model with FastMMoE on, by command, against the recorded loop over the official modules."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmmoe.runtime.types import Array
from tests.support.rounding import rounding_of

pytestmark = pytest.mark.engines

Tensors = dict[str, Array]

CHECKPOINTS = ("dsvl2-mha", "dsvl2-mla", "internvl-qwen3moe", "internvl-gptoss")
MAIN_SETTINGS = 4
STAGES = 3
ROUTER_GAP = 1e-5


def smallest_router_gap(setting: dict[str, Any]) -> float:
    margins = setting["margins"]
    gaps = [*margins["router_gap_at_k_per_moe_layer"], *margins["router_gap_at_k_v_per_moe_layer"]]
    return min(gap for gap in gaps if gap is not None)


def flip_of_near_ties(setting: dict[str, Any]) -> tuple[float, float]:
    """What logits and decode_logits may move where experts nearly tie: twice what the recorded flip of it does."""
    if smallest_router_gap(setting) >= ROUTER_GAP:
        return 0, 0
    flip = setting["flip_of_router_near_ties"]
    return 2 * flip["logits"], 2 * flip["decode"]


@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize("index", range(MAIN_SETTINGS))
def test_recorded_settings(
    name: str,
    index: int,
    bundle: Callable[..., Path],
    case_tensors: Callable[[str, str], Tensors],
    run_tensors: Callable[..., Tensors],
    golden_array: Callable[[str, str], Array],
) -> None:
    file = f"fastmmoe/fastmmoe_{name}.npz"
    setting = json.loads(str(golden_array(file, "settings")))[index]
    assert setting["role"] == "main"

    def recorded(array: str) -> Array:
        return golden_array(file, f"{index}_{array}")

    tokens = recorded("decode_tokens")
    flags = ("--retention", str(setting["retention"]), "--visual-top-k", str(setting["k_v"]))
    alpha = ("--alpha", str(setting["alpha"]), "--max-new-tokens", str(len(tokens)))
    found = run_tensors(bundle(name), case_tensors(name, "single"), *flags, *alpha)
    for stage in range(1, STAGES + 1):
        expected = recorded(f"kept_index_stage{stage}")
        assert len(expected) == setting["T"] - setting["V"] + setting["K_s"][stage - 1]
        assert found[f"kept_index_stage{stage}"].tolist() == expected.tolist()
    assert found["cache_lengths"].tolist() == recorded("cache_lengths").tolist()
    assert found["decode_tokens"].tolist() == tokens.tolist()
    found["decode_logits"] = found["decode_logits"][:, 0]
    for array, flip in zip(("logits", "decode_logits"), flip_of_near_ties(setting), strict=True):
        _, atol = rounding_of("logits", recorded(array), found["cache_lengths"].shape[-1])
        np.testing.assert_allclose(found[array], recorded(array), rtol=0, atol=max(atol, flip))
