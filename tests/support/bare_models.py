# SPDX-License-Identifier: Apache-2.0
"""Published models without a checkpoint, at any depth: configuration and modules on the meta device.

python -m tests.support.bare_models MODEL LAYERS METHOD GRAPH
    traces a graph and prints how many nodes it has, and the CPU seconds of the process.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import torch

from fastmmoe.exporter.checkpoint.config_reader import ConfigReader
from fastmmoe.exporter.graph.inputs import graph_inputs, graph_program
from fastmmoe.exporter.graph.stitching import trace
from fastmmoe.exporter.model import Model, Precision
from fastmmoe.exporter.models.family import family_of
from fastmmoe.exporter.pruning.settings import Layers, PolicyOptions, resolve_policy
from tests.support.published_configs import FORMS, language_of

FLOAT32 = Precision(torch.float32, torch.float32)
BFLOAT16_EXPERTS = Precision(torch.bfloat16, torch.float32)


class BareModel(Model):
    """A `Model` of one of FORMS without weights: what tracing needs. layers: of the decoder; None = as published."""

    def __init__(self, form: str, layers: int | None, precision: Precision, **options: Any) -> None:
        config = FORMS[form]()
        if layers is not None:
            language_of(config)["num_hidden_layers"] = layers
        self.family, self.precision = family_of(config["model_type"]), precision
        self.config = c = self.family.read_config(ConfigReader(config))
        of_layers = Layers(c.num_hidden_layers, c.moe_layers, c.full_attention_layers, c.moe.top_k)
        self.policy = resolve_policy(PolicyOptions(**options), family=self.family_name, layers=of_layers)
        with torch.device("meta"):
            self.graphs = self.family.build_graphs(c, self.policy)
        for graph, module in self.graphs.items():
            for name, parameter in module.named_parameters():
                parameter.requires_grad_(False)
                parameter.data = parameter.data.to(self.parameter_dtype(f"{graph}.{name}"))


def no_values(name: str) -> torch.Tensor:
    """There are none."""
    raise AssertionError(f"the values of {name} are not needed to trace")


def trace_bare(model: BareModel, graph: str, *, opset: int = 23) -> Any:
    """The graph of a model without weights."""
    module = dict(model.graphs.items())[graph]
    program, inputs = graph_program(model, graph), graph_inputs(model, graph)
    return trace(module, program, inputs, no_values, name=graph, opset=opset)


if __name__ == "__main__":
    form, layers, method, name = sys.argv[1:]
    model = BareModel(form, int(layers) or None, BFLOAT16_EXPERTS, method=method)
    print(len(trace_bare(model, name).graph), "nodes, CPU seconds:", time.process_time())
