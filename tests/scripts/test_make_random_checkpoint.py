# SPDX-License-Identifier: Apache-2.0
"""Random checkpoints of the published models: names, shapes and sizes, what the exporter takes, how values behave."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastmmoe.exporter.check import parity
from fastmmoe.exporter.checkpoint.reader import Checkpoint
from fastmmoe.exporter.model import Model, Precision
from fastmmoe.exporter.processor import read_processor_config
from fastmmoe.exporter.pruning.settings import PolicyOptions
from fastmmoe.runtime.errors import InvalidRequest
from tests.support.golden import CHECKPOINTS
from tests.support.scripts import script
from tests.support.torch_models import TorchModel

published, tensors, writer = (script(f"checkpoint_tools.{name}") for name in ("published", "tensors", "writer"))
every_model = pytest.mark.parametrize("name", published.PUBLISHED)
SMALL: dict[str, dict[str, Any]] = {
    "deepseek-vl2": {
        "hidden_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "intermediate_size": 256,
        "moe_intermediate_size": 64,
        "n_routed_experts": 16,
        "kv_lora_rank": 64,
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 16,
        "v_head_dim": 32,
    },
    "InternVL3_5-30B-A3B": {
        "hidden_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "num_experts": 16,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 64,
    },
    "InternVL3_5-GPT-OSS-20B-A4B-Preview-HF": {
        "hidden_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "num_local_experts": 16,
        "intermediate_size": 64,
    },
}
"""Sizes with which a model of few megabytes has many layers."""


def write(directory: Path, name: str, **cut: Any) -> Path:
    writer.write_checkpoint(directory, published.PUBLISHED[name], published.Cut(**cut))
    return directory


def read(directory: Path) -> dict[str, torch.Tensor]:
    checkpoint = Checkpoint(directory)
    return {name: checkpoint.load(name) for name in checkpoint.tensors}


@every_model
def test_whole_models_have_their_published_size(name: str) -> None:
    model = published.PUBLISHED[name]
    config, _ = published.cut_config(model, published.Cut())
    assert config == model.config()
    shapes = tensors.tensors_of(config)
    assert 2 * sum(map(math.prod, shapes.values())) / 1e9 == pytest.approx(model.gigabytes, rel=2e-3)
    shards = writer.split(shapes, writer.SHARD_BYTES)
    assert [tensor for shard in shards.values() for tensor in shard] == list(shapes)
    assert max(2 * sum(map(math.prod, shard.values())) for shard in shards.values()) <= writer.SHARD_BYTES


@every_model
def test_the_exporter_takes_every_model(name: str, tmp_path: Path) -> None:
    """Its first part, which accounts for every tensor; values are holes, as one layer of 241B has 5 GB of them."""
    cut = published.Cut(layers=2, vision_layers=1, vocab_size=600)
    writer.write_checkpoint(tmp_path, published.PUBLISHED[name], cut, shard_bytes=10**9, wanted=writer.none)
    model = Model(Checkpoint(tmp_path), PolicyOptions(method="none"), Precision(torch.bfloat16, torch.float32))
    assert (model.config.num_hidden_layers, model.config.vision.layers, model.config.vocab_size) == (2, 1, 600)
    processor = read_processor_config(tmp_path, model.config_reader, vocab_size=600)
    assert processor.image_token_id is not None and processor.stop_token_ids
    assert processor.image_token_id >= 256
    if "GPT-OSS" in name:
        assert (model.config.sliding_layers, model.config.full_attention_layers) == ((0,), (1,))


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_names_and_shapes_are_those_of_checkpoints_that_other_code_wrote(name: str, golden: Path) -> None:
    lists = [golden / name / file for file in ("tensors.json", "tensors_on_disk.json")]
    theirs = next(json.loads(file.read_text()) for file in lists if file.is_file())
    ours = tensors.tensors_of(json.loads((golden / name / "config.json").read_text()))
    assert {tensor: list(shape) for tensor, shape in ours.items()} == theirs


@pytest.mark.parametrize("name", SMALL)
def test_no_two_rows_are_equal_and_all_follow_from_the_seed(name: str) -> None:
    config, _ = published.cut_config(published.PUBLISHED[name], published.Cut(2, 1, 600, SMALL[name]))
    shapes = tensors.tensors_of(config)
    first, same, other = (tensors.RandomValues(shapes, seed) for seed in (0, 0, 1))
    matrices = [tensor for tensor, shape in shapes.items() if len(shape) > 1 and shape[-1] >= 32]
    rows: set[bytes] = set()
    for tensor in matrices:
        whole, again, others = (np.concatenate(list(values.runs(tensor))) for values in (first, same, other))
        assert len(whole) == math.prod(shapes[tensor]) and np.array_equal(whole, again)
        assert not np.array_equal(whole, others)
        rows |= {row.tobytes() for row in whole.reshape(-1, shapes[tensor][-1])}
    assert len(rows) == sum(math.prod(shapes[tensor][:-1]) for tensor in matrices)


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("a.self_attn.q_norm.weight", (128,), (1.6, 0.1)),
        ("a.attention.q_norm.weight", (3200,), (1.0, 0.1)),
        ("a.input_layernorm.weight", (2048,), (1.0, 0.1)),
        ("mlp1.0.weight", (4096,), (1.0, 0.1)),
        ("a.bias", (7,), (0.0, 0.1)),
        ("a.experts.gate_up_proj_bias", (32, 7), (0.0, 0.1)),
        ("a.gate.e_score_correction_bias", (72,), (0.0, 0.02)),
        ("a.embed_tokens.weight", (9, 4), (0.0, 1.0)),
        ("vision.pos_embed", (1, 729, 1152), (0.0, 0.5)),
        ("a.mlp.gate.weight", (128, 100), (0.0, 0.25)),
        ("a.mlp.router.weight", (128, 100), (0.0, 0.25)),
        ("a.mlp.experts.0.gate_proj.weight", (128, 100), (0.0, 0.1)),
        ("a.mlp.experts.down_proj", (32, 100, 2880), (0.0, 0.1)),
        ("a.lm_head.weight", (9, 900), (0.0, 0.1)),
        ("a.self_attn.q_proj.weight", (9, 400), (0.0, 0.125)),
        ("a.patch_embeddings.projection.weight", (9, 3, 10, 10), (0.0, 300**-0.5)),
    ],
)
def test_weights_as_decisive_as_trained_ones(name: str, shape: tuple[int, ...], expected: tuple[float, float]) -> None:
    assert tensors.distribution(name, shape, norms_queries=False) == pytest.approx(expected)


def test_queries_keep_their_length_where_a_norm_sets_it() -> None:
    assert tensors.distribution("a.self_attn.q_proj.weight", (9, 400), norms_queries=True) == (0.0, 0.05)


@pytest.mark.parametrize("name", SMALL)
def test_activations_stay_in_range_and_routing_is_decisive(name: str, tmp_path: Path) -> None:
    """A dozen layers, which few megabytes hold: what matters is a layer's part of the sum, not its size."""
    write(tmp_path, name, layers=12, vision_layers=2, vocab_size=600, text=SMALL[name])
    model = TorchModel(tmp_path, PolicyOptions(method="none"))
    lengths, shares = [], []

    def on_norm(_: Any, args: Any) -> None:
        lengths.append(float(args[0].square().mean().sqrt()))

    def on_router(_: Any, args: Any, logits: torch.Tensor) -> None:
        k = model.model.config.moe.top_k
        shares.append(float(logits.softmax(-1).sort(descending=True).values[:, :k].sum(-1).mean()))

    for layer in model.language_model.layers:
        layer.post_attention_layernorm.register_forward_pre_hook(on_norm)
        if hasattr(layer.mlp, "experts"):
            layer.mlp.experts.router.register_forward_hook(on_router)
    features = torch.from_numpy(_picture_features(model))
    assert 0.3 < float(features.std()) < 3
    assert float((features[0] - features[-1]).abs().mean()) > 0.1
    embeds = torch.cat((model.embed_ids(torch.arange(100)), features))
    logits = model.prefill(embeds, np.arange(100, len(embeds), dtype=np.int32), model.schedule(len(features), 1.0))
    assert torch.isfinite(logits["logits"]).all() and 1 < float(logits["logits"].std()) < 10
    assert 0.5 < min(lengths) <= max(lengths) < 10
    E, k = model.model.config.moe.num_experts, model.model.config.moe.top_k
    assert min(shares) > min(1.8 * k / E, 0.7)


def _picture_features(model: TorchModel) -> Any:
    processor = read_processor_config(
        model.model.checkpoint.path, model.model.config_reader, vocab_size=model.model.config.vocab_size
    )
    inputs = {key: torch.from_numpy(value) for key, value in parity._picture(processor).items()}
    with torch.no_grad():
        return model.vision(inputs)["image_features"].numpy()


def test_values_can_be_left_out(tmp_path: Path) -> None:
    """What is a hole reads as zeros, and takes no room."""
    cut = published.Cut(2, 1, 600)
    model = published.PUBLISHED["InternVL3_5-30B-A3B"]
    writer.write_checkpoint(tmp_path, model, cut, wanted=lambda name, shape: name.endswith("lm_head.weight"))
    found = read(tmp_path)
    assert found["language_model.lm_head.weight"].abs().min(1).values.sum() > 0
    assert not found["language_model.model.layers.1.mlp.experts.127.down_proj.weight"].any()
    file = (tmp_path / "model.safetensors").stat()
    assert file.st_blocks * 512 < 2**23 < 2**31 < file.st_size


def test_a_directory_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("")
    with pytest.raises(InvalidRequest, match=f"^{tmp_path} is not empty; give a new directory"):
        write(tmp_path, "deepseek-vl2-tiny")
    assert [file.name for file in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("cut", "expected"),
    [
        ({"layers": 1}, "1 layers: expected 2 to 12"),
        ({"layers": 13}, "13 layers: expected 2 to 12"),
        ({"vision_layers": 0}, "0 vision layers: expected 1 to 27"),
        ({"vocab_size": 511}, "511 rows of the vocabulary: expected 512 to 129280"),
    ],
)
def test_cuts_that_leave_no_model_are_refused(cut: dict[str, int], expected: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=f"^{expected}"):
        write(tmp_path, "deepseek-vl2-tiny", **cut)
    assert not list(tmp_path.iterdir())
