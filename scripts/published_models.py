# SPDX-License-Identifier: Apache-2.0
"""The published models whose FLOPs the documentation counts: their language models, by name, and their prompts.

Sizes are those of the checkpoints' config.json (class defaults applied), settings those that an export would choose.
"""

from __future__ import annotations

from dataclasses import dataclass

from fastmmoe.exporter.pruning.settings import Layers, PolicyOptions, resolve_policy
from fastmmoe.runtime.bundle.manifest import LanguageModelInfo
from fastmmoe.runtime.method.policy import Policy

TEXT_TOKENS = 64


@dataclass(frozen=True)
class PublishedModel:
    """A model as the FLOPs counter sees it, and a prompt for it: a picture, and TEXT_TOKENS of text after it.

    Attributes:
        family: whose default settings apply.
        visual_tokens: of the picture that `picture` describes.
    """

    name: str
    family: str
    info: LanguageModelInfo
    visual_tokens: int
    picture: str

    @property
    def tokens(self) -> int:
        """T of the prompt."""
        return self.visual_tokens + TEXT_TOKENS

    @property
    def policy(self) -> Policy:
        """Of a comparison bundle with the default settings."""
        every = tuple(range(self.info.layers))
        layers = Layers(count=self.info.layers, moe=self.info.moe_layers, full_attention=every, top_k=self.info.top_k)
        return resolve_policy(PolicyOptions(method="all"), family=self.family, layers=layers)


def _deepseek(
    *,
    hidden_size: int,
    layers: int,
    heads: int,
    vocab_size: int,
    num_experts: int,
    expert_size: int,
    dense_size: int,
) -> LanguageModelInfo:
    """A decoder with latent attention of DeepSeek-V2's widths, two shared experts, and a dense layer 0."""
    return LanguageModelInfo(
        hidden_size=hidden_size,
        vocab_size=vocab_size,
        layers=layers,
        heads=heads,
        kv_heads=heads,
        query_key_dim=192,
        value_dim=128,
        kv_lora_rank=512,
        rope_dim=64,
        cache_parts=("latent",),
        cache_shape=(1, 576),
        moe_layers=tuple(range(1, layers)),
        num_experts=num_experts,
        top_k=6,
        moe_intermediate_size=expert_size,
        shared_intermediate_size=2 * expert_size,
        dense_intermediate_size=dense_size,
        sliding_layers=(),
        sliding_window=None,
    )


DEEPSEEK_VL2_SMALL = PublishedModel(
    name="DeepSeek-VL2-small",
    family="deepseek_vl2",
    info=_deepseek(
        hidden_size=2048,
        layers=27,
        heads=16,
        vocab_size=102400,
        num_experts=64,
        expert_size=1408,
        dense_size=10944,
    ),
    visual_tokens=1023,
    picture="700 x 500 pixels, 2 x 2 tiles and the global view",
)
DEEPSEEK_VL2_BASE = PublishedModel(
    name="DeepSeek-VL2 (base)",
    family="deepseek_vl2",
    info=_deepseek(
        hidden_size=2560,
        layers=30,
        heads=32,
        vocab_size=129280,
        num_experts=72,
        expert_size=1536,
        dense_size=12288,
    ),
    visual_tokens=1023,
    picture=DEEPSEEK_VL2_SMALL.picture,
)
INTERNVL3_5_30B = PublishedModel(
    name="InternVL3.5-30B-A3B",
    family="internvl3_5",
    info=LanguageModelInfo(
        hidden_size=2048,
        vocab_size=151936,
        layers=48,
        heads=32,
        kv_heads=4,
        query_key_dim=128,
        value_dim=128,
        kv_lora_rank=0,
        rope_dim=128,
        cache_parts=("key", "value"),
        cache_shape=(4, 128),
        moe_layers=tuple(range(48)),
        num_experts=128,
        top_k=8,
        moe_intermediate_size=768,
        shared_intermediate_size=0,
        dense_intermediate_size=0,
        sliding_layers=(),
        sliding_window=None,
    ),
    visual_tokens=1792,
    picture="700 x 500 pixels, at most 6 tiles: 3 x 2 and the thumbnail",
)
PUBLISHED = (DEEPSEEK_VL2_SMALL, DEEPSEEK_VL2_BASE, INTERNVL3_5_30B)
