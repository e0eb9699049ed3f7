# SPDX-License-Identifier: Apache-2.0
"""What is known of a model by its configuration alone, whatever its family: no torch, no weights.

A new family is one entry of `CONFIGS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from fastmmoe.exporter.checkpoint.config_reader import ConfigReader, shown
from fastmmoe.exporter.checkpoint.side_files import SideFiles
from fastmmoe.exporter.models import (
    deepseek_vl2_config,
    deepseek_vl2_processor,
    internvl3_5_config,
    internvl3_5_processor,
)
from fastmmoe.exporter.models.config_checks import MoeConfig
from fastmmoe.runtime.errors import UnsupportedModel
from fastmmoe.runtime.request import deepseek_vl2, internvl
from fastmmoe.runtime.request.config import FamilyName, ProcessorConfig


class VisionSizes(Protocol):
    """Sizes of a vision tower, as `VisionInfo` of the manifest has them, its heads and the side of a tile in pixels."""

    @property
    def image_size(self) -> int: ...
    @property
    def layers(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def heads(self) -> int: ...
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


@dataclass(frozen=True)
class FamilyConfig:
    """What a family's files of configuration give.

    Attributes:
        name: the family's, as manifests have it.
        model_types: what config.json's `model_type` says of its checkpoints.
        read_config: the model's configuration. Raises UnsupportedModel for what is missing or not implemented.
        read_processor: the record of preprocessing, of the files, config.json and the embedding's rows; likewise.
        count_small: parameters that are no matrices (norms, biases, positions), by part as
            `runtime/cost/weights.py` names them.
    """

    name: FamilyName
    model_types: tuple[str, ...]
    read_config: Callable[[ConfigReader], Any]
    read_processor: Callable[[SideFiles, ConfigReader, int], ProcessorConfig]
    count_small: Callable[[Any], dict[str, int]]


CONFIGS: tuple[FamilyConfig, ...] = (
    FamilyConfig(
        deepseek_vl2.NAME,
        deepseek_vl2_config.MODEL_TYPES,
        deepseek_vl2_config.read_config,
        deepseek_vl2_processor.read_processor,
        deepseek_vl2_config.count_small,
    ),
    FamilyConfig(
        internvl.NAME,
        internvl3_5_config.MODEL_TYPES,
        internvl3_5_config.read_config,
        internvl3_5_processor.read_processor,
        internvl3_5_config.count_small,
    ),
)
BY_MODEL_TYPE = {model_type: family for family in CONFIGS for model_type in family.model_types}


def config_of(model_type: object) -> FamilyConfig:
    """The family of what config.json says; UnsupportedModel if there is none."""
    if not isinstance(model_type, str) or model_type not in BY_MODEL_TYPE:
        raise UnsupportedModel(
            f"model_type {shown(model_type)} in config.json: supported are {', '.join(BY_MODEL_TYPE)}"
        )
    return BY_MODEL_TYPE[model_type]
