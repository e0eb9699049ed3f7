# SPDX-License-Identifier: Apache-2.0
"""The built-in checkpoint: same bytes every time, the published layout, and weights that make clear choices."""

from __future__ import annotations

import hashlib
import json
import math
import re
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from fastmmoe.exporter.checkpoint import Checkpoint, WeightRule, account
from fastmmoe.exporter.demo import write_demo_checkpoint

FILES = ["config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "tokenizer_config.json"]
# Of model.safetensors. It must not depend on the machine or on library versions; new weights need a new value.
WEIGHTS_SHA256 = "bfd8f5e315ce42c4ec4e5a89ef69df63a5e844f44208b08973b2ad7c19a23a8d"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("demo")
    write_demo_checkpoint(directory)
    return directory


def test_two_writes_are_byte_identical(demo: Path, tmp_path: Path) -> None:
    write_demo_checkpoint(tmp_path / "not" / "there" / "yet")
    again = {file.name: file.read_bytes() for file in (tmp_path / "not" / "there" / "yet").iterdir()}
    assert again == {file.name: file.read_bytes() for file in demo.iterdir()}
    assert sorted(again) == FILES


def test_weights_are_the_same_on_every_machine(demo: Path) -> None:
    assert hashlib.sha256((demo / "model.safetensors").read_bytes()).hexdigest() == WEIGHTS_SHA256


def test_small_and_fast(tmp_path: Path) -> None:
    start = time.process_time()
    write_demo_checkpoint(tmp_path)
    assert time.process_time() - start < 2
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 10_000_000


def test_layout_is_that_of_deepseek_vl2(demo: Path, golden: Path) -> None:
    """Same tensor names as the golden MLA checkpoint, apart from the numbers of layers and experts."""
    official = json.loads((golden / "dsvl2-mla" / "config.json").read_text())
    checkpoint = Checkpoint(demo)
    language = checkpoint.config["language_config"]
    names = {re.sub(r"\d+", "#", name) for name in checkpoint.tensors}
    assert names == {re.sub(r"\d+", "#", name) for name in Checkpoint(golden / "dsvl2-mla").tensors}
    assert {info.dtype for info in checkpoint.tensors.values()} == {"BF16"}
    assert checkpoint.config["candidate_resolutions"] == official["candidate_resolutions"]
    assert set(language) <= {*official["language_config"], "torch_dtype"}
    experts = [name for name in checkpoint.tensors if ".mlp.experts." in name]
    moe_layers = language["num_hidden_layers"] - language["first_k_dense_replace"]
    assert len(experts) == 3 * language["n_routed_experts"] * moe_layers
    account(checkpoint, {n: WeightRule(((n, t.shape),)) for n, t in checkpoint.tensors.items()}, ())


def test_processor_files_equal_the_official_form(demo: Path, golden: Path) -> None:
    for name in ("processor_config.json", "tokenizer_config.json"):
        assert json.loads((demo / name).read_text()) == json.loads((golden / "dsvl2-inputs" / name).read_text())


def test_tokenizer(demo: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(demo / "tokenizer.json"))
    config = json.loads((demo / "config.json").read_text())["language_config"]
    assert tokenizer.get_vocab_size() <= config["vocab_size"] <= 512
    assert tokenizer.token_to_id("<｜begin▁of▁sentence｜>") == config["bos_token_id"]
    assert tokenizer.token_to_id("<｜end▁of▁sentence｜>") == config["eos_token_id"]
    text = "Größe: 3 × 4 cm\n\tBox 🙂"
    ids = tokenizer.encode(f"<|User|>: <image>\n{text}", add_special_tokens=False).ids
    assert len(ids) == 2 + len(f": \n{text}".encode())  # each special token is one id, all else one id a byte
    assert ids[0] == tokenizer.token_to_id("<|User|>")
    assert tokenizer.decode(ids, skip_special_tokens=True) == f": \n{text}"


def test_only_text_tokens_have_logits(demo: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(demo / "tokenizer.json"))
    rows = Checkpoint(demo).load("language.lm_head.weight").float().abs().sum(dim=1).nonzero().flatten().tolist()
    assert sorted(tokenizer.decode([row]) for row in rows) == [chr(code) for code in range(32, 127)]


def test_routing_and_attention_are_decisive(demo: Path) -> None:
    """Mean entropy over the tokens, of every layer, as a share of that of a uniform distribution."""
    checkpoint = Checkpoint(demo)
    ids = torch.arange(10, 202)  # 192 different tokens
    routing, attention, experts = decoder_statistics(checkpoint, ids)
    assert max(routing) < 0.7, routing
    assert max(attention) < 0.85, attention
    # Decisive for each token by itself: every layer still uses most of its experts.
    assert min(experts) >= 12, experts


def rms_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.rms_norm(x, (x.shape[-1],), weight, 1e-6)


def mlp(x: torch.Tensor, weights: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    gate, up, down = (weights[f"{name}.{part}_proj.weight"] for part in ("gate", "up", "down"))
    return (F.silu(x @ gate.T) * (x @ up.T)) @ down.T


def rotate_pairs(x: torch.Tensor) -> torch.Tensor:
    """RoPE (theta 10000) of [..., T, D] over pairs (2i, 2i + 1)."""
    T, D = x.shape[-2:]
    angles = torch.arange(T)[:, None] * 10000.0 ** (-torch.arange(0, D, 2) / D)
    turned = torch.view_as_complex(x.reshape(*x.shape[:-1], D // 2, 2)) * torch.polar(torch.ones_like(angles), angles)
    return torch.view_as_real(turned).flatten(-2)


def latent_attention(x: torch.Tensor, weights: dict[str, torch.Tensor], name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """MLA as in the specification (4 heads, nope 16, rope 8, v 16, rank 32): output [T, H], probabilities [4, T, T]."""
    T = x.shape[0]
    q = (x @ weights[f"{name}.q_proj.weight"].T).view(T, 4, 24).transpose(0, 1)
    c, k_pe = (x @ weights[f"{name}.kv_a_proj_with_mqa.weight"].T).split((32, 8), dim=-1)
    c = rms_norm(c, weights[f"{name}.kv_a_layernorm.weight"])
    k, v = (c @ weights[f"{name}.kv_b_proj.weight"].T).view(T, 4, 32).transpose(0, 1).split(16, dim=-1)
    scores = q[..., :16] @ k.mT + rotate_pairs(q[..., 16:]) @ rotate_pairs(k_pe).mT
    future = torch.ones(T, T, dtype=torch.bool).triu(1)
    probabilities = (scores * 24**-0.5).masked_fill(future, -math.inf).softmax(dim=-1)
    return (probabilities @ v).transpose(0, 1).reshape(T, -1) @ weights[f"{name}.o_proj.weight"].T, probabilities


def entropy(probabilities: torch.Tensor) -> torch.Tensor:
    return -(probabilities * probabilities.clamp(min=1e-30).log()).sum(dim=-1)


def decoder_statistics(checkpoint: Checkpoint, ids: torch.Tensor) -> tuple[list[float], list[float], list[int]]:
    """Run the decoder on a text; per layer: routing entropy, last row's attention entropy (both as share of uniform),
    number of experts that are anyone's first choice."""
    weights = {name: checkpoint.load(name).float() for name in checkpoint.tensors if name.startswith("language.")}
    routing, attention, experts = [], [], []
    x = weights["language.model.embed_tokens.weight"][ids]
    for i in range(checkpoint.config["language_config"]["num_hidden_layers"]):
        layer = f"language.model.layers.{i}"
        y, attended = latent_attention(
            rms_norm(x, weights[f"{layer}.input_layernorm.weight"]), weights, f"{layer}.self_attn"
        )
        attention.append(float(entropy(attended[:, -1]).mean()) / math.log(len(ids)))
        x = x + y
        y = rms_norm(x, weights[f"{layer}.post_attention_layernorm.weight"])
        if i == 0:
            x = x + mlp(y, weights, f"{layer}.mlp")
            continue
        scores = (y @ weights[f"{layer}.mlp.gate.weight"].T).softmax(dim=-1)
        routing.append(float(entropy(scores).mean()) / math.log(16))
        experts.append(len(scores.argmax(dim=-1).unique()))
        kept = torch.zeros_like(scores).scatter(1, *reversed(scores.topk(6, dim=-1)))
        routed = sum(kept[:, e, None] * mlp(y, weights, f"{layer}.mlp.experts.{e}") for e in range(16))
        x = x + routed + mlp(y, weights, f"{layer}.mlp.shared_experts")
    return routing, attention, experts
