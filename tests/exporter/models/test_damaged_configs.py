# SPDX-License-Identifier: Apache-2.0
"""Every field of config.json with every kind of wrong value: one line before anything is allocated, or no effect."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fastmmoe.exporter.checkpoint.config_reader import ConfigReader
from fastmmoe.exporter.checkpoint.reader import Checkpoint
from fastmmoe.exporter.model import Model, Precision
from fastmmoe.exporter.models import deepseek_vl2_config, internvl3_5_config
from fastmmoe.exporter.processor import read_processor_config
from fastmmoe.exporter.pruning.settings import PolicyOptions
from fastmmoe.runtime.errors import FastmmoeError, UnsupportedModel
from tests.support.cpu_seconds import bounded_seconds
from tests.support.golden import CHECKPOINTS

Json = dict[str, Any]
every_model = pytest.mark.parametrize("name", CHECKPOINTS)


def nested(depth: int, inner: Any = 0) -> Any:
    for _ in range(depth):
        inner = [{"a": inner}]
    return inner


VALUES: dict[str, Any] = {
    "0": 0,
    "-1": -1,
    "1": 1,
    "2^31": 2**31,
    "2^63": 2**63,
    "10^400": 10**400,
    "half": 0.5,
    "1e6": 1_000_000,
    "1e400": float("inf"),
    "-Infinity": float("-inf"),
    "NaN": float("nan"),
    "list": [1, 2, 3],
    "empty list": [],
    "long list": list(range(10_000)),
    "deep": nested(300),
    "object": {"a": 1},
    "empty object": {},
    "string": "x" * 10_000,
    "null": None,
    "true": True,
    "false": False,
}
# Values of the table that mean another, legal model: key -> names in VALUES.
SMALL = {"1"}
LEGAL: dict[str, set[str]] = {
    "vocab_size": {"1", "1e6"},
    "hidden_size": SMALL,
    "num_hidden_layers": SMALL,
    "num_attention_heads": SMALL,
    "num_key_value_heads": {"1", "null"},
    "intermediate_size": SMALL,
    "moe_intermediate_size": SMALL,
    "num_experts_per_tok": SMALL,
    "n_shared_experts": SMALL,
    "first_k_dense_replace": {"0", "1"},
    "moe_layer_freq": SMALL,
    "max_position_embeddings": {"1", "1e6"},
    "kv_lora_rank": SMALL,
    "qk_nope_head_dim": SMALL,
    "v_head_dim": SMALL,
    "patch_size": SMALL,
    "layers": SMALL,
    "heads": SMALL,
    "mlp_ratio": {"1", "half"},
    "layer_norm_eps": {"1", "half"},
    "rms_norm_eps": {"1", "half"},
    "rope_theta": {"1e6", "2^31"},
    "factor": {"1", "1e6"},
    "original_max_position_embeddings": {"1", "1e6", "null"},
    "beta_fast": {"1", "half", "1e6"},
    "beta_slow": {"half", "1e6"},
    "swiglu_limit": {"1", "half", "1e6", "2^31"},
    "sliding_window": {"1", "1e6"},
    "norm_topk_prob": {"true", "false"},
    "attention_bias": {"true", "false"},
    "use_qk_norm": {"true", "false"},
    "qk_normalization": {"true", "false"},
    "qkv_bias": {"true", "false"},
    "use_mla": {"true", "false"},
}


def read(config: Json) -> Any:
    family: Any = deepseek_vl2_config if config["model_type"] == "deepseek_vl_v2" else internvl3_5_config
    return family.read_config(ConfigReader(config))


def load(golden: Path, name: str) -> Json:
    config: Json = json.loads((golden / name / "config.json").read_text())
    return config


def fields(config: Json, *before: str) -> Iterator[tuple[str, ...]]:
    """Every key of a file but the model_type that chooses the family, sections and their keys included."""
    for key, value in config.items():
        if (*before, key) != ("model_type",):
            yield (*before, key)
        if isinstance(value, dict):
            yield from fields(value, *before, key)


def changed(config: Json, path: tuple[str, ...], value: Any) -> Json:
    """A file with another value."""
    key, *rest = path
    return config | {key: changed(config[key], tuple(rest), value) if rest else value}


@every_model
def test_every_field_with_every_wrong_value(golden: Path, name: str) -> None:
    """Refused in one line, or without effect, or one of the values that mean another model."""
    config = load(golden, name)
    whole = read(config)
    memory = peak_bytes()
    outcomes = {"refused": 0, "read": 0, "without effect": 0}
    for path in fields(config):
        for value in VALUES:
            try:
                with bounded_seconds(1):
                    found = read(changed(config, path, VALUES[value]))
            except UnsupportedModel as error:
                check_line(error)
                outcomes["refused"] += 1
                continue
            outcomes["without effect" if found == whole else "read"] += 1
            assert found == whole or value in LEGAL.get(path[-1], ()), (path, value)
    count = sum(outcomes.values())
    assert len(list(fields(config))) >= 44 and outcomes["refused"] > count / 3
    assert peak_bytes() - memory < 50e6


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def check_line(error: FastmmoeError) -> None:
    text = str(error)
    assert text.isprintable() and len(text) < 900, text


@pytest.mark.parametrize("name", ["dsvl2-mla", "internvl-gptoss-original"])
def test_checkpoints_up_to_tracing(golden: Path, own_checkpoint: Callable[[str], Path], name: str) -> None:
    """What read_config takes of the table, through all of an export's front, from the bytes of the file."""
    directory = own_checkpoint(name)
    config = load(golden, name)
    whole, memory = read(config), peak_bytes()
    refused = 0
    for path in [("model_type",), *fields(config)]:
        for value in ("0", "2^31", "deep"):
            if not reaches_others(changed(config, path, VALUES[value]), path, whole):
                continue
            (directory / "config.json").write_text(json.dumps(changed(config, path, VALUES[value])))
            try:
                with bounded_seconds(5):
                    open_checkpoint(directory)
            except FastmmoeError as error:
                check_line(error)
                refused += 1
    assert refused > 10
    assert peak_bytes() - memory < 200e6


def reaches_others(config: Json, path: tuple[str, ...], whole: Any) -> bool:
    """Whether read_config takes a file, and the changed key reaches something else."""
    if path == ("model_type",):
        return True
    try:
        reader = ConfigReader(config)
        family: Any = deepseek_vl2_config if config["model_type"] == "deepseek_vl_v2" else internvl3_5_config
        return family.read_config(reader) != whole or path[0] in reader.unread() or path[-1].endswith("s_token_id")
    except UnsupportedModel:
        return False


def open_checkpoint(directory: Path) -> None:
    """What `export` does before it traces."""
    checkpoint = Checkpoint(directory)
    model = Model(checkpoint, PolicyOptions(), Precision(torch.float32, torch.float32))
    read_processor_config(checkpoint.path, model.config_reader, vocab_size=model.config.vocab_size)


FILES = {
    "dsvl2-mha": ("config.json", "processor_config.json", "tokenizer_config.json"),
    "internvl-qwen3moe": ("config.json", "preprocessor_config.json", "generation_config.json"),
}


@pytest.mark.parametrize(
    "text",
    [
        '{"a":' * 100_000,
        "[" * 100_000,
        '{"a": ' + "9" * 5000 + "}",
        "NaN",
    ],
    ids=["deep objects", "deep lists", "long integer", "no object"],
)
def test_files_that_json_parsers_stumble_over(own_checkpoint: Callable[[str], Path], text: str) -> None:
    for name, files in FILES.items():
        directory = own_checkpoint(name)
        for file in files:
            before = (directory / file).read_text()
            (directory / file).write_text(text)
            with pytest.raises(UnsupportedModel) as caught:
                open_checkpoint(directory)
            check_line(caught.value)
            (directory / file).write_text(before)


def test_more_tensors_than_the_weights_could_hold_are_not_listed(own_checkpoint: Callable[[str], Path]) -> None:
    """1,024 layers of 4,096 experts mean twelve million tensors, whose rules would take minutes."""
    directory = own_checkpoint("dsvl2-mha")
    config = json.loads((directory / "config.json").read_text())
    config["language_config"] |= {"num_hidden_layers": 1024, "n_routed_experts": 4096}
    (directory / "config.json").write_text(json.dumps(config))
    with (
        bounded_seconds(5),
        pytest.raises(UnsupportedModel, match=r"1,024 layers, 4,096 experts in each of 1,023 .* the weights hold 302"),
    ):
        open_checkpoint(directory)
