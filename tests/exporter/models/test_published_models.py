# SPDX-License-Identifier: Apache-2.0
"""The published models: their numbers of parameters, and where they prune if nobody says it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastmmoe.exporter.checkpoint.config_reader import ConfigReader
from fastmmoe.exporter.models import deepseek_vl2, internvl3_5
from fastmmoe.exporter.pruning.settings import Layers, PolicyOptions, resolve_policy
from tests.support.published_configs import FORMS


def read(form: str) -> tuple[Any, Any]:
    """(family module, its configuration)."""
    config = FORMS[form]()
    family: Any = deepseek_vl2 if config["model_type"] == "deepseek_vl_v2" else internvl3_5
    return family, family.read_config(ConfigReader(config))


def parameter_counts(form: str) -> dict[str, int]:
    """Parameters that come from a checkpoint, by graph; "projector" is apart from "vision"."""
    family, c = read(form)
    with torch.device("meta"):
        graphs = family.build_graphs(c, default_policy(form))
    computed = family.computed_weights(c)
    counts = {"vision": 0, "projector": 0, "embedding": 0, "language_model": 0}
    not_tower = ("projector_", "image_newline", "view_seperator")
    for graph, module in graphs.items():
        for name, parameter in module.named_parameters():
            part = "projector" if graph == "vision" and name.startswith(not_tower) else graph
            counts[part] += 0 if f"{graph}.{name}" in computed else parameter.numel()
    return counts


def default_policy(form: str) -> Any:
    family, c = read(form)
    layers = Layers(c.num_hidden_layers, c.moe_layers, c.full_attention_layers, c.moe.top_k)
    return resolve_policy(PolicyOptions(), family=family.PREPROCESSING.NAME, layers=layers)


@pytest.mark.parametrize(
    ("form", "vision", "decoder"),
    [
        ("tiny", "0.413", "2.93"),
        ("small", "0.413", "15.71"),
        ("base", "0.413", "27.03"),
        ("20B", "0.304", "20.91"),
        ("30B", "0.304", "30.53"),
        ("241B", "5.54", "235.09"),
    ],
)
def test_published_models_have_their_number_of_parameters(form: str, vision: str, decoder: str) -> None:
    """In billions: tower without projector; decoder with embedding and head."""
    counts = parameter_counts(form)
    for expected, count in ((vision, counts["vision"]), (decoder, counts["embedding"] + counts["language_model"])):
        decimals = len(expected.split(".")[1])
        assert f"{count / 1e9:.{decimals}f}" == expected


@pytest.mark.parametrize(
    ("form", "prune_layers", "alpha", "merge_ratio"),
    [
        # floor(l * 12 / 27 + 0.5) = 1, 2, 4
        ("tiny", (1, 2, 4), 0.3, 0.05),
        ("small", (2, 5, 8), 0.3, 0.05),
        # floor(l * 30 / 27 + 0.5) = 2, 6, 9
        ("base", (2, 6, 9), 0.3, 0.05),
        # floor(l * 24 / 48 + 0.5) = 3, 4, 6; full attention in odd layers only: 3, 5, 7
        ("20B", (3, 5, 7), 0.5, 0.025),
        ("30B", (5, 8, 12), 0.5, 0.025),
        # floor(l * 94 / 48 + 0.5) = 10, 16, 24
        ("241B", (10, 16, 24), 0.5, 0.025),
    ],
)
def test_default_prune_layers(form: str, prune_layers: tuple[int, ...], alpha: float, merge_ratio: float) -> None:
    policy = default_policy(form)
    assert (policy.prune_layers, policy.alpha, policy.merge_ratio) == ({"fastmmoe": prune_layers}, alpha, merge_ratio)
    assert (policy.stage_exponents, policy.window) == ((1 / 3, 2 / 3, 1.0), 3)
    _, c = read(form)
    reduced = c.moe.top_k // 2
    assert policy.visual_top_k == tuple(c.moe.top_k if layer < 2 else reduced for layer in c.moe_layers)
