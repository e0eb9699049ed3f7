# SPDX-License-Identifier: Apache-2.0
"""The graphs of a bundle: the embedding, and the order in which they are named."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from fastmmoe.exporter.checkpoint.config_reader import ConfigReader
from fastmmoe.exporter.models import deepseek_vl2
from fastmmoe.exporter.models.graphs import Embedding
from fastmmoe.exporter.pruning.settings import Layers, PolicyOptions, resolve_policy
from fastmmoe.runtime.bundle import graph_io
from fastmmoe.runtime.bundle.manifest import GRAPHS


def test_an_embedding_gives_a_row_for_each_id() -> None:
    embedding = Embedding(5, 3)
    embedding.weight.data = torch.arange(15.0).view(5, 3)
    outputs = embedding({graph_io.INPUT_IDS: torch.tensor([4, 0, 4], dtype=torch.int32)})
    assert list(outputs) == [graph_io.INPUTS_EMBEDS]
    assert outputs[graph_io.INPUTS_EMBEDS].tolist() == [[12, 13, 14], [0, 1, 2], [12, 13, 14]]
    assert embedding({graph_io.INPUT_IDS: torch.empty(0, dtype=torch.int32)})[graph_io.INPUTS_EMBEDS].shape == (0, 3)


def test_graphs_are_named_as_the_bundles_files(golden: Path) -> None:
    config = deepseek_vl2.read_config(ConfigReader(json.loads((golden / "dsvl2-mla" / "config.json").read_text())))
    layers = Layers(config.num_hidden_layers, config.moe_layers, config.full_attention_layers, config.moe.top_k)
    with torch.device("meta"):
        graphs = deepseek_vl2.build_graphs(
            config, resolve_policy(PolicyOptions(), family="deepseek_vl2", layers=layers)
        )
    assert tuple(name for name, _ in graphs.items()) == GRAPHS
    assert all(module is getattr(graphs, name) for name, module in graphs.items())
