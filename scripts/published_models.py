# SPDX-License-Identifier: Apache-2.0
"""The published models whose FLOPs the documentation counts: their language models, by name, and their prompts.

Sizes are those of the checkpoints' config.json, settings those that an export would choose.
"""

from __future__ import annotations

from dataclasses import dataclass

from fastmmoe.exporter.fit.sizes import ModelSizes, read_sizes
from fastmmoe.exporter.manifest import language_model_info
from fastmmoe.exporter.pruning.settings import PolicyOptions
from fastmmoe.runtime.bundle.manifest import LanguageModelInfo
from fastmmoe.runtime.method.policy import Policy

TEXT_TOKENS = 64


@dataclass(frozen=True)
class PublishedModel:
    """A model as the FLOPs counter sees it, and a prompt for it: a picture, and TEXT_TOKENS of text after it.

    Attributes:
        visual_tokens: of the picture that `picture` describes.
    """

    name: str
    sizes: ModelSizes
    visual_tokens: int
    picture: str

    @property
    def tokens(self) -> int:
        """T of the prompt."""
        return self.visual_tokens + TEXT_TOKENS

    @property
    def info(self) -> LanguageModelInfo:
        """Sizes of its language model."""
        return language_model_info(self.sizes.config)

    @property
    def policy(self) -> Policy:
        """Of a comparison bundle with the default settings."""
        return read_sizes(self.sizes.name, PolicyOptions(method="all")).policy


DEEPSEEK_VL2_SMALL = PublishedModel(
    name="DeepSeek-VL2-small",
    sizes=read_sizes("deepseek-vl2-small"),
    visual_tokens=1023,
    picture="700 x 500 pixels, 2 x 2 tiles and the global view",
)
DEEPSEEK_VL2_BASE = PublishedModel(
    name="DeepSeek-VL2 (base)",
    sizes=read_sizes("deepseek-vl2"),
    visual_tokens=1023,
    picture=DEEPSEEK_VL2_SMALL.picture,
)
INTERNVL3_5_30B = PublishedModel(
    name="InternVL3.5-30B-A3B",
    sizes=read_sizes("InternVL3_5-30B-A3B"),
    visual_tokens=1792,
    picture="700 x 500 pixels, at most 6 tiles: 3 x 2 and the thumbnail",
)
PUBLISHED = (DEEPSEEK_VL2_SMALL, DEEPSEEK_VL2_BASE, INTERNVL3_5_30B)
