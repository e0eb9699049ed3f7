# SPDX-License-Identifier: Apache-2.0
"""What a family's file gives the exporter. A new family is its files beside this one, and one entry of `FAMILIES`."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from fastmmoe.exporter.checkpoint.config_reader import ConfigReader
from fastmmoe.exporter.checkpoint.reader import WeightRule
from fastmmoe.exporter.models import deepseek_vl2, internvl3_5
from fastmmoe.exporter.models.configs import ModelConfig, config_of
from fastmmoe.exporter.models.graphs import GraphModules
from fastmmoe.runtime.method.policy import Policy
from fastmmoe.runtime.request.family import Family as Preprocessing


class Family(Protocol):
    """A module with these names; `config` is what its own `read_config` returns.

    Attributes:
        PREPROCESSING: the family in the runtime, whose name it has.
        DROPPED_TENSORS: patterns of names that the graphs have no use for.
        RENAMED_PREFIXES: prefixes of names that some tools write -> those of the weight map.
    """

    PREPROCESSING: Preprocessing
    DROPPED_TENSORS: tuple[str, ...]
    RENAMED_PREFIXES: dict[str, str]

    def read_config(self, reader: ConfigReader) -> ModelConfig:
        """The model's configuration. Raises UnsupportedModel for what is missing or not implemented."""

    def build_graphs(self, c: Any, policy: Policy) -> GraphModules:
        """The three graphs as modules with uninitialised parameters."""

    def computed_weights(self, c: Any) -> dict[str, torch.Tensor]:
        """Parameters that follow from the configuration, by graph-qualified name."""

    def weight_map(self, c: Any, *, fused_experts: bool = False) -> dict[str, WeightRule]:
        """How every other parameter is made from the checkpoint, by graph-qualified name."""


FAMILIES: tuple[Family, ...] = (deepseek_vl2, internvl3_5)


def family_of(model_type: object) -> Family:
    """The family of what config.json says; UnsupportedModel if there is none."""
    found = config_of(model_type)
    return next(family for family in FAMILIES if found.name == family.PREPROCESSING.NAME)
