# SPDX-License-Identifier: Apache-2.0
"""config.json of the published models, in every form: numbers, keys that are missing or moved, keys not read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fastmmoe.exporter.checkpoint.config_reader import ConfigReader
from fastmmoe.exporter.checkpoint.reader import Checkpoint
from fastmmoe.exporter.config import DEMO, checkpoint_directory
from fastmmoe.exporter.model import Model, Precision
from fastmmoe.exporter.models import deepseek_vl2_config, internvl3_5_config
from fastmmoe.exporter.processor import read_processor_config
from fastmmoe.exporter.pruning.settings import PolicyOptions
from fastmmoe.runtime.errors import UnsupportedModel
from tests.support.published_configs import FORMS, LANGUAGE_SECTION, Json, as_saved_by_4, as_saved_by_5, load_published

every_form = pytest.mark.parametrize("form", FORMS)
hf_forms = pytest.mark.parametrize("form", [name for name in FORMS if "-HF" in name])


def read(config: Json) -> tuple[Any, ConfigReader]:
    family: Any = deepseek_vl2_config if config["model_type"] == "deepseek_vl_v2" else internvl3_5_config
    reader = ConfigReader(config)
    return family.read_config(reader), reader


# hidden size, layers, heads, key-value heads, vocabulary, experts, experts a token, width of an expert
NUMBERS = {
    "tiny": (1280, 12, 10, 10, 129280, 64, 6, 896),
    "small": (2048, 27, 16, 16, 102400, 64, 6, 1408),
    "base": (2560, 30, 32, 32, 129280, 72, 6, 1536),
    "30B": (2048, 48, 32, 4, 151936, 128, 8, 768),
    "241B": (4096, 94, 64, 4, 151936, 128, 8, 1536),
    "20B": (2880, 24, 64, 8, 201088, 32, 4, 2880),
}


@every_form
def test_every_published_form_is_read(form: str) -> None:
    c, _ = read(FORMS[form]())
    found = (c.hidden_size, c.num_hidden_layers, c.num_attention_heads, c.num_key_value_heads, c.vocab_size)
    assert (*found, c.moe.num_experts, c.moe.top_k, c.moe.intermediate_size) == NUMBERS[form.split("-")[0]]
    if "B" in form:
        tower = (3200, 45, 25, 12800, "rms_norm") if "241B" in form else (1024, 24, 16, 4096, "layer_norm")
        v = c.vision
        assert (v.width, v.layers, v.heads, v.mlp_width, v.norm_type) == tower
    if "20B" in form:
        assert (c.yarn.factor, c.yarn.attention_factor, c.rope_theta) == (
            32.0,
            pytest.approx(1.3465735902799727),
            1.5e5,
        )
        assert (c.sliding_layers, c.sliding_window) == (tuple(range(0, 24, 2)), 128)


@pytest.mark.parametrize("size", ["30B", "241B", "20B"])
def test_every_form_of_a_size_reads_alike(size: str) -> None:
    first, *others = (vars(read(FORMS[form]())[0]) for form in FORMS if form.split("-")[0] == size)
    for other in others:
        assert other | {"is_hf_layout": True} == first | {"is_hf_layout": True}


@every_form
def test_no_key_of_a_published_file_is_unknown(form: str, golden: Path, tmp_path: Path) -> None:
    config = FORMS[form]()
    c, reader = read(config)
    if "B" in form and "-HF" not in form:
        # The original layout has the image token's id in its tokenizer alone.
        source = golden / ("internvl-gptoss" if "20B" in form else "internvl-qwen3moe") / "tokenizer.json"
        shutil.copyfile(source, tmp_path / "tokenizer.json")
    read_processor_config(tmp_path, reader, vocab_size=c.vocab_size)
    assert reader.unread() == []


def test_another_model_of_the_same_type_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match=r"vision_config.model_name is 'deeplip_b_l'; supported: 'siglip"):
        read(load_published("DeepSeek-OCR/config.json"))


@hf_forms
@pytest.mark.parametrize("top", [True, False, None])
@pytest.mark.parametrize("text", [False, None])
def test_the_language_models_own_key_says_whether_the_head_is_the_embedding(
    form: str, top: bool | None, text: bool | None
) -> None:
    """None = missing, which means False; transformers 5 writes True at the top of every -HF file that it saves."""
    config = FORMS[form]()
    set_key(config, ("tie_word_embeddings",), top)
    set_key(config, ("text_config", "tie_word_embeddings"), text)
    assert read(config)[0] == read(FORMS[form]())[0]
    config["text_config"]["tie_word_embeddings"] = True
    with pytest.raises(UnsupportedModel, match=r"text_config.tie_word_embeddings is True; supported: False"):
        read(config)


def set_key(config: Json, path: tuple[str, ...], value: Any) -> None:
    """Set a key, or remove it where the value is None."""
    *sections, key = path
    for section in sections:
        config = config[section]
    config.pop(key, None)
    if value is not None:
        config[key] = value


def paths(config: Json, *before: str) -> list[tuple[str, ...]]:
    """Every key of a file but the model_type that chooses the family, those of sections and rope blocks included."""
    found = []
    for key, value in config.items():
        found.append((*before, key))
        if isinstance(value, dict) and (key.endswith("_config") or key.startswith("rope_")):
            found += paths(value, *before, key)
    return [path for path in found if path != ("model_type",)]


def at(config: Json, path: tuple[str, ...]) -> Any:
    for key in path:
        config = config[key]
    return config


# What a missing key means where the class has a default other than the published value.
MEANINGS: dict[tuple[str, str], Json] = {
    ("deepseek_vl_v2", "max_position_embeddings"): {"max_position_embeddings": 2048},
    ("deepseek_vl_v2", "vocab_size"): {"vocab_size": 102400},
    ("deepseek_vl_v2", "num_hidden_layers"): {"num_hidden_layers": 30},
    ("deepseek_vl_v2", "intermediate_size"): {"intermediate_size": 11008},
    ("deepseek_vl_v2", "num_attention_heads"): {"num_attention_heads": 32, "num_key_value_heads": 32},
    ("deepseek_vl_v2", "first_k_dense_replace"): {"first_k_dense_replace": 0},
}
MOE_MEANINGS: dict[tuple[str, str], Json] = {
    ("deepseek_vl_v2", "moe_intermediate_size"): {"intermediate_size": 1407},
    ("deepseek_vl_v2", "norm_topk_prob"): {"norm_topk_prob": False},
    ("deepseek_vl_v2", "routed_scaling_factor"): {"routed_scaling_factor": 1.0},
    ("deepseek_vl_v2", "scoring_func"): {"scoring_func": "softmax"},
    ("internvl", "norm_topk_prob"): {"norm_topk_prob": False},
    ("internvl_chat", "norm_topk_prob"): {"norm_topk_prob": False},
}


VISION_MEANINGS: dict[tuple[str, str], Json] = {
    ("deepseek_vl_v2", "patch_size"): {"patch_size": 16},
    ("internvl_chat", "norm_type"): {"norm_type": "rms_norm"},
    ("internvl", "norm_type"): {"norm_type": "layer_norm"},
}
YARN_MEANINGS: Json = {"original_max_position_embeddings": {"original_max_position_embeddings": 131072}}
# Keys whose absence another key's line tells: it has the value of the other kind of model, or stands in two files.
TOLD_BY = {"use_mla": "kv_lora_rank", "rope_parameters": "rope_"}


@every_form
def test_a_missing_key_is_its_classes_default_or_refused(form: str) -> None:
    """Each key of each file, one at a time: the same result, the class default, or a line that names the key."""
    whole, _ = read(FORMS[form]())
    for path in paths(FORMS[form]()):
        config = FORMS[form]()
        set_key(config, path, None)
        try:
            found, _ = read(config)
        except UnsupportedModel as error:
            assert TOLD_BY.get(path[-1], path[-1]) in str(error), (path, str(error))
            continue
        row = (config["model_type"], path[-1])
        expected = vars(whole) | MEANINGS.get(row, {})
        expected["moe"] = type(whole.moe)(**vars(whole.moe) | MOE_MEANINGS.get(row, {}))
        if path[-1] in YARN_MEANINGS:
            expected["yarn"] = type(whole.yarn)(**vars(whole.yarn) | YARN_MEANINGS[path[-1]])
        expected["vision"] = type(whole.vision)(**vars(whole.vision) | VISION_MEANINGS.get(row, {}))
        assert vars(found) == expected, path


@every_form
def test_a_key_at_another_level_is_never_taken_for_its_value_there(form: str) -> None:
    """A key moved to the top or into the language model's section, with a wrong value: without effect, or refused."""
    for path in paths(FORMS[form]()):
        config = FORMS[form]()
        target = (path[-1],) if len(path) > 1 else (LANGUAGE_SECTION[config["model_type"]], path[-1])
        if target in paths(config) or target == ("model_type",) or isinstance(at(config, path), dict):
            continue
        whole, _ = read(config)
        set_key(config, target, wrong(at(config, path)))
        try:
            found, _ = read(config)
        except UnsupportedModel as error:
            assert path[-1] in str(error)
            continue
        assert found == whole, path


def wrong(value: Any) -> Any:
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value * 2 + 2
    return "other" if isinstance(value, str) else [*(value or []), "other"]


@pytest.mark.parametrize(("value", "found"), [(False, "is False"), (None, "is missing, which means False")])
def test_one_tile_a_picture_is_refused(golden: Path, tmp_path: Path, value: Any, found: str) -> None:
    config = FORMS["30B"]()
    set_key(config, ("dynamic_image_size",), value)
    shutil.copyfile(golden / "internvl-qwen3moe" / "tokenizer.json", tmp_path / "tokenizer.json")
    with pytest.raises(UnsupportedModel, match=rf"dynamic_image_size {found}; supported: True"):
        read_processor_config(tmp_path, read(config)[1], vocab_size=151936)


def test_the_demo_has_no_unknown_key() -> None:
    directory = checkpoint_directory(DEMO)
    c, reader = read(json.loads((directory / "config.json").read_text()))
    read_processor_config(directory, reader, vocab_size=c.vocab_size)
    assert reader.unread() == []


@pytest.mark.parametrize("name", ["internvl-qwen3moe", "internvl-gptoss"])
@pytest.mark.parametrize("save", [as_saved_by_4, as_saved_by_5])
def test_weights_open_with_the_forms_of_both_versions(
    own_checkpoint: Callable[[str], Path], name: str, save: Callable[[Json], Json]
) -> None:
    """A head of its own in the weights, whatever the top level says about tying."""
    directory = own_checkpoint(name)
    config = json.loads((directory / "config.json").read_text())
    text = config["text_config"]
    rope = text.pop("rope_parameters")
    config.pop("tie_word_embeddings")
    text["rope_theta"], text["rope_scaling"] = rope.pop("rope_theta"), rope if rope["rope_type"] == "yarn" else None
    (directory / "config.json").write_text(json.dumps(save(config)))
    model = Model(Checkpoint(directory), PolicyOptions(), Precision(torch.float32, torch.float32))
    head, embedding = (model.load(name) for name in ("language_model.lm_head.weight", "embedding.weight"))
    assert head.shape == embedding.shape and not torch.equal(head, embedding)
