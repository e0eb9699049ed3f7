# SPDX-License-Identifier: Apache-2.0
"""What a family's file gives the exporter. A new family is its files beside this one, and one entry of `FAMILIES`."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from fastmmoe.exporter.checkpoint.config_reader import ConfigReader, shown
from fastmmoe.exporter.checkpoint.reader import WeightRule
from fastmmoe.exporter.checkpoint.side_files import SideFiles
from fastmmoe.exporter.models import deepseek_vl2, internvl3_5
from fastmmoe.exporter.models.graphs import GraphModules
from fastmmoe.exporter.models.layers import MoeConfig
from fastmmoe.runtime.errors import UnsupportedModel
from fastmmoe.runtime.method.policy import Policy
from fastmmoe.runtime.request.config import ProcessorConfig
from fastmmoe.runtime.request.family import Family as Preprocessing


class VisionSizes(Protocol):
    """Sizes of a vision tower, as `VisionInfo` of the manifest has them, and the side of a tile in pixels."""

    @property
    def image_size(self) -> int: ...
    @property
    def layers(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def mlp_width(self) -> int: ...
    @property
    def patch_size(self) -> int: ...
    @property
    def rows_per_tile(self) -> int: ...
    @property
    def tokens_per_tile(self) -> int: ...
    @property
    def projector_inputs(self) -> int: ...


class ModelConfig(Protocol):
    """What the exporter needs of a configuration, whatever the family; `LanguageModelInfo` says what the names mean."""

    @property
    def vision(self) -> VisionSizes: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def max_position_embeddings(self) -> int: ...
    @property
    def num_hidden_layers(self) -> int: ...
    @property
    def num_attention_heads(self) -> int: ...
    @property
    def num_key_value_heads(self) -> int: ...
    @property
    def query_key_dim(self) -> int: ...
    @property
    def value_dim(self) -> int: ...
    @property
    def rope_dim(self) -> int: ...
    @property
    def kv_lora_rank(self) -> int: ...
    @property
    def moe(self) -> MoeConfig: ...
    @property
    def moe_layers(self) -> tuple[int, ...]: ...
    @property
    def shared_intermediate_size(self) -> int: ...
    @property
    def dense_intermediate_size(self) -> int: ...
    @property
    def full_attention_layers(self) -> tuple[int, ...]: ...
    @property
    def sliding_layers(self) -> tuple[int, ...]: ...
    @property
    def sliding_window(self) -> int | None: ...


class Family(Protocol):
    """A module with these names; `config` is what its own `read_config` returns.

    Attributes:
        MODEL_TYPES: what config.json's `model_type` says of its checkpoints.
        PREPROCESSING: the family in the runtime, whose name it has.
        DROPPED_TENSORS: patterns of names that the graphs have no use for.
        RENAMED_PREFIXES: prefixes of names that some tools write -> those of the weight map.
    """

    MODEL_TYPES: tuple[str, ...]
    PREPROCESSING: Preprocessing
    DROPPED_TENSORS: tuple[str, ...]
    RENAMED_PREFIXES: dict[str, str]

    def read_config(self, reader: ConfigReader) -> ModelConfig:
        """The model's configuration. Raises UnsupportedModel for what is missing or not implemented."""

    def read_processor(self, files: SideFiles, config: ConfigReader, vocab_size: int) -> ProcessorConfig:
        """The record of preprocessing. Raises UnsupportedModel for what is missing or not implemented."""

    def build_graphs(self, c: Any, policy: Policy) -> GraphModules:
        """The three graphs as modules with uninitialised parameters."""

    def computed_weights(self, c: Any) -> dict[str, torch.Tensor]:
        """Parameters that follow from the configuration, by graph-qualified name."""

    def weight_map(self, c: Any, *, fused_experts: bool = False) -> dict[str, WeightRule]:
        """How every other parameter is made from the checkpoint, by graph-qualified name."""


FAMILIES: tuple[Family, ...] = (deepseek_vl2, internvl3_5)
BY_MODEL_TYPE = {model_type: family for family in FAMILIES for model_type in family.MODEL_TYPES}


def family_of(model_type: object) -> Family:
    """The family of what config.json says; UnsupportedModel if there is none."""
    if not isinstance(model_type, str) or model_type not in BY_MODEL_TYPE:
        raise UnsupportedModel(
            f"model_type {shown(model_type)} in config.json: supported are {', '.join(BY_MODEL_TYPE)}"
        )
    return BY_MODEL_TYPE[model_type]
