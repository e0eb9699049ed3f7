# SPDX-License-Identifier: Apache-2.0
"""The benchmark of language models: what a bundle is fed, the medians, and the checkpoint that it makes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from fastmmoe.runtime.bundle import graph_io
from tests.support.echo import Echo
from tests.support.manifests import toy_manifest
from tests.support.scripts import script

benchmark = script("benchmark_llm")


def test_prefills_are_new_and_steps_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = toy_manifest("deepseek_vl2")
    backend = Echo(manifest.language_model, manifest.policy)
    monkeypatch.setattr(benchmark, "read_manifest", lambda path: None)
    monkeypatch.setattr(benchmark, "OnnxRuntime", lambda *_, **__: backend)
    bundle = benchmark.Bundle(Path("toy"), 1)
    for rows in (7, 1, 1, 7):
        assert min(bundle(rows)) >= 0
    given = [len(call[graph_io.POSITION_IDS]) for call in backend.calls]
    assert given == [7, benchmark.BEGINNING, 1, 1, 7]
    past = [int(call["past_lengths.0"][0]) for call in backend.calls]
    assert past == [0, 0, benchmark.BEGINNING, benchmark.BEGINNING + 1, 0]


def test_medians_are_tokens_a_second() -> None:
    calls: list[int] = []

    def program(rows: int) -> Any:
        calls.append(rows)
        return benchmark.Times(rows / 100, rows / 50)

    found = benchmark.measure({"a": program}, [1, 64], repeats=2)
    assert found["a", 64] == pytest.approx((100, 50)) and found["a", 1] == pytest.approx((100, 50))
    assert calls.count(64) == 3 and calls.count(1) == 3 * benchmark.STEPS


def test_the_checkpoint_and_its_language_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(benchmark, "LAYERS", 1)
    monkeypatch.setattr(benchmark, "SIZES", benchmark.SIZES | {"num_experts": 4, "moe_intermediate_size": 32})
    benchmark.make(tmp_path)
    config = json.loads((tmp_path / "text" / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["Qwen3MoeForCausalLM"] and config["num_hidden_layers"] == 1
    with safe_open(tmp_path / "text" / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert {"model.embed_tokens.weight", "lm_head.weight", "model.layers.0.mlp.experts.3.up_proj.weight"} <= names
    assert not any("vision" in name for name in names)
