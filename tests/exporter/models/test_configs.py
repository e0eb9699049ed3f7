# SPDX-License-Identifier: Apache-2.0
"""What is known of a model by its configuration: families, sizes, and parameters as the modules have them."""

from __future__ import annotations

import subprocess
import sys
import typing
from typing import Any

import pytest
import torch

from fastmmoe.exporter.checkpoint.config_reader import ConfigReader
from fastmmoe.exporter.manifest import language_model_info, vision_info
from fastmmoe.exporter.model import EXPERT_WEIGHTS, FLOAT32_PARTS
from fastmmoe.exporter.models.configs import BY_MODEL_TYPE, CONFIGS, ModelConfig, VisionSizes, config_of
from fastmmoe.exporter.models.family import family_of
from fastmmoe.exporter.pruning.settings import Layers, PolicyOptions, resolve_policy
from fastmmoe.runtime.cost.weights import count_weights
from fastmmoe.runtime.errors import UnsupportedModel
from tests.support.published_configs import FORMS

SIZES = ("tiny", "small", "base", "20B", "30B", "241B")


def members(protocol: type) -> set[str]:
    return {name for name in {*vars(protocol), *typing.get_type_hints(protocol)} if not name.startswith("_")}


def test_a_model_type_is_of_one_family() -> None:
    assert len(BY_MODEL_TYPE) == sum(len(family.model_types) for family in CONFIGS)


@pytest.mark.parametrize("model_type", ["llava", "", None, 3, ["internvl"], {"internvl": 1}, "InternVL"])
def test_other_model_types_are_refused(model_type: object) -> None:
    with pytest.raises(UnsupportedModel) as raised:
        config_of(model_type)
    supported = "supported are deepseek_vl_v2, internvl, internvl_chat"
    assert str(raised.value) == f"model_type {model_type!r} in config.json: {supported}"


@pytest.mark.parametrize("form", SIZES)
def test_each_configuration_has_what_is_asked_of_one(form: str) -> None:
    """Numbers of the tower follow from each other, and those of the decoder fit the cache that it leaves."""
    values = FORMS[form]()
    config: Any = config_of(values["model_type"]).read_config(ConfigReader(values))
    for protocol, record in ((ModelConfig, config), (VisionSizes, config.vision)):
        assert not [name for name in members(protocol) if not hasattr(record, name)]
    vision = config.vision
    patches = (vision.image_size // vision.patch_size) ** 2
    assert vision.rows_per_tile - patches == (0 if form in ("tiny", "small", "base") else 1)
    assert (vision.tokens_per_tile, vision.projector_inputs // vision.width) == (
        (196, 4) if form in ("tiny", "small", "base") else (256, 4)
    )
    assert (config.kv_lora_rank > 0) == (form in ("small", "base"))
    assert (config.query_key_dim, config.value_dim, config.rope_dim) == {
        "tiny": (128, 128, 128),
        "small": (192, 128, 64),
        "base": (192, 128, 64),
        "20B": (64, 64, 64),
        "30B": (128, 128, 128),
        "241B": (128, 128, 128),
    }[form]
    assert bool(config.sliding_layers) == (config.sliding_window is not None) == (form == "20B")
    assert set(config.sliding_layers).isdisjoint(config.full_attention_layers)
    assert (config.shared_intermediate_size, config.dense_intermediate_size) == {
        "tiny": (1792, 6848),
        "small": (2816, 10944),
        "base": (3072, 12288),
    }.get(form, (0, 0))


@pytest.mark.parametrize("form", [*SIZES, "30B-HF"])
def test_every_parameter_of_the_modules_is_counted_in_its_part(form: str) -> None:
    """The modules are built without values; the counter has seen the configuration alone."""
    values = FORMS[form]()
    family, config = family_of(values["model_type"]), config_of(values["model_type"])
    c: Any = config.read_config(ConfigReader(values))
    layers = Layers(c.num_hidden_layers, c.moe_layers, c.full_attention_layers, c.moe.top_k)
    policy = resolve_policy(PolicyOptions(), family=config.name, layers=layers)
    with torch.device("meta"):
        graphs = family.build_graphs(c, policy)
    found: dict[str, int] = {}
    for graph, module in graphs.items():
        for name, parameter in module.named_parameters():
            part = part_of(f"{graph}.{name}")
            found[part] = found.get(part, 0) + parameter.numel()
    counted = count_weights(language_model_info(c), vision_info(c.vision), config.count_small(c))
    assert {part: count for part, count in counted.items() if count} == found


def part_of(name: str) -> str:
    """The part that a parameter belongs to, by its graph-qualified name."""
    graph, _, rest = name.partition(".")
    if graph != "language_model":
        return graph
    if any(part in name for part in FLOAT32_PARTS):
        return "rotary" if "inv_freq" in name else "router"
    if ".mlp.experts." in name:
        return "routed_experts" if name.endswith(EXPERT_WEIGHTS) else "expert_biases"
    words = {".shared_experts.": "shared_experts", ".mlp.": "dense", ".self_attn.": "attention", "lm_head.": "head"}
    return next((part for word, part in words.items() if word in f".{rest}"), "norms")


def test_configurations_are_read_without_torch() -> None:
    code = "import sys, fastmmoe.exporter.models.configs, fastmmoe.exporter.processor; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
