# SPDX-License-Identifier: Apache-2.0
"""The inputs of each graph for tracing: those of runtime/bundle/graph_io.py, with torch's dtypes and least sizes."""

from __future__ import annotations

import torch

from fastmmoe.exporter.graph.tracing import GraphInput
from fastmmoe.exporter.manifest import language_model_info
from fastmmoe.exporter.model import Model
from fastmmoe.runtime.bundle.graph_io import least_size
from fastmmoe.runtime.bundle.signatures import Tensor, embedding_inputs, language_model_inputs, vision_inputs


def graph_inputs(model: Model, graph: str) -> list[GraphInput]:
    """Inputs of the graph "vision", "embedding" or "language_model"."""

    def least(size: str) -> int:
        # Visual tokens may be none, but not where there are tiles.
        return 1 if graph == "vision" and size == "V" else least_size(size)

    return [
        GraphInput(
            tensor.name,
            tensor.shape,
            getattr(torch, tensor.dtype),
            minimum=max((least(size) for size in tensor.shape if isinstance(size, str)), default=0),
        )
        for tensor in _tensors(model, graph)
    ]


def _tensors(model: Model, graph: str) -> list[Tensor]:
    dtype, cache_dtype = model.precision.activation_dtype, model.precision.cache_dtype
    if graph == "vision":
        return vision_inputs(model.config.vision.image_size, dtype, has_layout=model.family.PREPROCESSING.HAS_LAYOUT)
    if graph == "embedding":
        return embedding_inputs()
    return language_model_inputs(language_model_info(model.config), model.policy, dtype, cache_dtype)
