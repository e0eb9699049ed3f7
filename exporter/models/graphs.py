# SPDX-License-Identifier: Apache-2.0
"""The three graphs a bundle holds, as modules that take and give tensors by name."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from fastmmoe.exporter.models.decoder import LanguageModel
from fastmmoe.exporter.models.steps import Program
from fastmmoe.runtime.bundle import graph_io


class Embedding(nn.Module):
    """input_ids [T] int32 -> inputs_embeds [T, H]."""

    def __init__(self, vocab_size: int, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, hidden_size))

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {graph_io.INPUTS_EMBEDS: F.embedding(inputs[graph_io.INPUT_IDS], self.weight)}

    def program(self) -> Program:
        """The module as a step."""
        return Program.of(
            self, {graph_io.INPUT_IDS: (("T",), torch.int32)}, (graph_io.INPUTS_EMBEDS,), name="embedding"
        )


@dataclass(frozen=True)
class GraphModules:
    """Modules of one model; the names are the bundle's and the prefixes of the weight maps."""

    vision: nn.Module
    embedding: Embedding
    language_model: LanguageModel

    def items(self) -> tuple[tuple[str, nn.Module], ...]:
        """(name, module), vision first."""
        return (("vision", self.vision), ("embedding", self.embedding), ("language_model", self.language_model))
