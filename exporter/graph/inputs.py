# SPDX-License-Identifier: Apache-2.0
"""What is traced of a model: each graph's program, and its inputs, those of runtime/bundle/graph_io.py."""

from __future__ import annotations

import torch

from fastmmoe.exporter.graph.tracing import GraphInput
from fastmmoe.exporter.manifest import language_model_info
from fastmmoe.exporter.model import Model
from fastmmoe.exporter.models.steps import Program
from fastmmoe.runtime.bundle.signatures import Tensor, embedding_inputs, language_model_inputs, vision_inputs


def graph_program(model: Model, graph: str) -> Program:
    """The steps of the graph "vision", "embedding" or "language_model"."""
    if graph == "language_model":
        return model.graphs.language_model.program(getattr(torch, model.precision.cache_dtype))
    found: Program = getattr(model.graphs, graph).program()
    return found


def graph_inputs(model: Model, graph: str) -> list[GraphInput]:
    """Inputs of the graph."""
    return [GraphInput(t.name, t.shape, getattr(torch, t.dtype)) for t in _tensors(model, graph)]


def _tensors(model: Model, graph: str) -> list[Tensor]:
    dtype, cache_dtype = model.precision.activation_dtype, model.precision.cache_dtype
    if graph == "vision":
        return vision_inputs(model.config.vision.image_size, dtype, has_layout=model.family.PREPROCESSING.HAS_LAYOUT)
    if graph == "embedding":
        return embedding_inputs()
    return language_model_inputs(language_model_info(model.config), model.policy, dtype, cache_dtype)
