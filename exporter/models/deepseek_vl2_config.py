# SPDX-License-Identifier: Apache-2.0
"""config.json of DeepSeek-VL2.

Source of keys and defaults: the configuration classes of the official code (deepseek-ai/DeepSeek-VL2).
"""

from __future__ import annotations

from dataclasses import dataclass

from fastmmoe.exporter.checkpoint.config_reader import ConfigReader
from fastmmoe.exporter.checkpoint.known_keys import DEEPSEEK_VL2, sort_keys
from fastmmoe.exporter.models.config_checks import MoeConfig, check_heads, check_moe, check_rotary, check_tower
from fastmmoe.exporter.models.rope import read_rope
from fastmmoe.runtime.ranges import (
    Epsilon,
    ExpertGroups,
    Experts,
    ExpertsPerToken,
    HeadDim,
    Heads,
    LayerIndex,
    Layers,
    PatchCount,
    Pixels,
    Positions,
    Positive,
    VocabSize,
    Width,
    WidthRatio,
)

MODEL_TYPES = ("deepseek_vl_v2",)
# Keys of latent attention, which a model without it may have all the same.
LATENT_KEYS = ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "qk_head_dim")


@dataclass(frozen=True)
class VisionConfig:
    image_size: int
    patch_size: int
    width: int
    layers: int
    heads: int
    mlp_ratio: float
    downsample_ratio: int

    @property
    def grid(self) -> int:
        return self.image_size // self.patch_size

    @property
    def mlp_width(self) -> int:
        return int(self.width * self.mlp_ratio)

    @property
    def rows_per_tile(self) -> int:
        return self.grid**2

    @property
    def tokens_per_tile(self) -> int:
        """The grid of patches is padded to a multiple of the ratio."""
        return (-(-self.grid // self.downsample_ratio)) ** 2

    @property
    def projector_inputs(self) -> int:
        return self.width * self.downsample_ratio**2


@dataclass(frozen=True)
class MlaConfig:
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int


@dataclass(frozen=True)
class Config:
    """Values of config.json that the graphs need, official class defaults applied."""

    vision: VisionConfig
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    mla: MlaConfig | None
    intermediate_size: int
    moe: MoeConfig
    n_shared_experts: int
    first_k_dense_replace: int
    moe_layer_freq: int
    rms_norm_eps: float
    rope_theta: float
    max_position_embeddings: int

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def head_shape(self) -> tuple[int, int, int]:
        """Heads, key-value heads, dimensions of a head."""
        return self.num_attention_heads, self.num_key_value_heads, self.head_dim

    @property
    def query_key_dim(self) -> int:
        return self.head_dim if self.mla is None else self.mla.qk_nope_head_dim + self.mla.qk_rope_head_dim

    @property
    def value_dim(self) -> int:
        return self.head_dim if self.mla is None else self.mla.v_head_dim

    @property
    def rope_dim(self) -> int:
        return self.head_dim if self.mla is None else self.mla.qk_rope_head_dim

    @property
    def kv_lora_rank(self) -> int:
        return 0 if self.mla is None else self.mla.kv_lora_rank

    @property
    def dense_intermediate_size(self) -> int:
        return self.intermediate_size

    @property
    def shared_intermediate_size(self) -> int:
        return self.moe.intermediate_size * self.n_shared_experts

    @property
    def moe_layers(self) -> tuple[int, ...]:
        layers = range(self.first_k_dense_replace, self.num_hidden_layers)
        return tuple(i for i in layers if i % self.moe_layer_freq == 0)

    @property
    def full_attention_layers(self) -> tuple[int, ...]:
        return tuple(range(self.num_hidden_layers))

    @property
    def sliding_layers(self) -> tuple[int, ...]:
        return ()

    @property
    def sliding_window(self) -> None:
        return None


def read_config(reader: ConfigReader) -> Config:
    """The model's configuration.

    Raises:
        UnsupportedModel: a value is missing, outside its range, not implemented, or does not go with another.
    """
    vision, projector, language = (
        reader.section("vision_config"),
        reader.section("projector_config"),
        reader.section("language_config"),
    )
    language.choice("model_type", ("deepseek_v2",), "deepseek_v2")
    language.choice("tie_word_embeddings", (False,), False)
    layers = language.get("num_hidden_layers", 30, Layers)
    hidden_size = language.get("hidden_size", 4096, Width)
    heads, kv_heads, mla = _read_attention(language, hidden_size)
    n_embed = projector.get("n_embed", hidden_size, Width)
    projector.check("n_embed", n_embed, n_embed == hidden_size, f"language_config.hidden_size = {hidden_size}")
    config = Config(
        vision=_read_vision(vision, projector),
        moe=_read_moe(language),
        mla=mla,
        vocab_size=language.get("vocab_size", 102400, VocabSize),
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=language.get("intermediate_size", 11008, Width),
        n_shared_experts=language.require("n_shared_experts", Experts),
        first_k_dense_replace=language.get("first_k_dense_replace", 0, LayerIndex),
        moe_layer_freq=language.get("moe_layer_freq", 1, Layers),
        rms_norm_eps=language.get("rms_norm_eps", 1e-6, Epsilon),
        rope_theta=read_rope(language, default_theta=10000.0).theta,
        max_position_embeddings=language.get("max_position_embeddings", 2048, Positions),
    )
    has_moe = bool(config.moe_layers)
    language.check("first_k_dense_replace", config.first_k_dense_replace, has_moe, f"a MoE layer among {layers} layers")
    sort_keys(DEEPSEEK_VL2, reader, language)
    return config


def count_small(c: Config) -> dict[str, int]:
    """Parameters that are no matrices, by part; see `FamilyConfig`."""
    v, H, layers = c.vision, c.hidden_size, c.num_hidden_layers
    # Of a block: two norms with biases, the biases of qkv, proj, fc1 and fc2.
    blocks = v.layers * (4 * v.width + 5 * v.width + v.mlp_width)
    tower = v.grid**2 * v.width + v.width + blocks + 2 * v.width
    return {
        # The projector's biases, image_newline and view_seperator.
        "vision": tower + 4 * H,
        "attention": layers * c.kv_lora_rank,
        "norms": (2 * layers + 1) * H,
        "router": len(c.moe_layers) * c.moe.num_experts,
        "rotary": c.rope_dim // 2,
    }


def _read_vision(vision: ConfigReader, projector: ConfigReader) -> VisionConfig:
    vision.choice("model_type", ("vision",), "vision")
    vision.choice("model_name", ("siglip_so400m_patch14_384",), "siglip_so400m_patch14_384")
    vision.choice("class_token", (False,), False)
    vision.choice("ignore_head", (True,), True)
    vision.choice("select_layer", (-1,), -1)
    projector.choice("model_type", ("mlp_projector",), "mlp_projector")
    projector.choice("projector_type", ("downsample_mlp_gelu",), "downsample_mlp_gelu")
    projector.choice("depth", (2,), 2)
    projector.choice("mlp_ratio", (1,), 1)
    projector.choice("token_pooling", (False,), False)
    config = VisionConfig(
        image_size=vision.get("image_size", 384, Pixels),
        patch_size=vision.get("patch_size", 16, Pixels),
        width=vision.get("width", 1152, Width),
        layers=vision.get("layers", 27, Layers),
        heads=vision.get("heads", 16, Heads),
        mlp_ratio=vision.get("mlp_ratio", 3.7362, WidthRatio),
        downsample_ratio=projector.get("downsample_ratio", 2, PatchCount),
    )
    width = config.width
    check_tower(vision, "width", width=width, heads=config.heads, image_size=config.image_size, patch=config.patch_size)
    vision.check("mlp_ratio", config.mlp_ratio, config.mlp_width >= 1, f"at least one of {width} features")
    input_dim = projector.get("input_dim", width, Width)
    projector.check("input_dim", input_dim, input_dim == width, f"vision_config.width = {width}")
    return config


def _read_moe(language: ConfigReader) -> MoeConfig:
    language.choice("hidden_act", ("silu",), "silu")
    moe = MoeConfig(
        num_experts=language.require("n_routed_experts", Experts),
        top_k=language.require("num_experts_per_tok", ExpertsPerToken),
        intermediate_size=language.get("moe_intermediate_size", 1407, Width),
        scoring_func=language.choice("scoring_func", ("softmax", "sigmoid"), "softmax"),
        # The class default is a value that the gate itself refuses, so a usable file always gives another.
        topk_method=language.choice("topk_method", ("greedy", "group_limited_greedy", "noaux_tc"), "gready"),
        n_group=language.get("n_group", None, ExpertGroups | None) or 1,
        topk_group=language.get("topk_group", None, ExpertGroups | None) or 1,
        norm_topk_prob=language.get("norm_topk_prob", False),
        routed_scaling_factor=language.get("routed_scaling_factor", 1.0, Positive),
    )
    check_moe(language, moe)
    return moe


def _read_attention(language: ConfigReader, hidden_size: int) -> tuple[int, int, MlaConfig | None]:
    """Heads, key-value heads, and latent attention where the model has it."""
    language.choice("attention_bias", (False,), False)
    heads = language.get("num_attention_heads", 32, Heads)
    kv_heads = language.get("num_key_value_heads", 32, Heads | None) or heads
    if language.get("use_mla", True):
        return heads, heads, _read_mla(language)
    language.ignore(*LATENT_KEYS)
    check_heads(language, heads=heads, kv_heads=kv_heads)
    language.check(
        "hidden_size",
        hidden_size,
        hidden_size % (2 * heads) == 0,
        f"a multiple of {2 * heads}: {heads} heads of an even width",
    )
    language.choice("head_dim", (hidden_size // heads, None), None)
    return heads, kv_heads, None


def _read_mla(language: ConfigReader) -> MlaConfig:
    language.choice("q_lora_rank", (None,), 1536)
    # Of the class in transformers, which writes one of the two parts or both together; the parts are read.
    language.ignore("head_dim", "qk_head_dim")
    mla = MlaConfig(
        kv_lora_rank=language.get("kv_lora_rank", 512, Width),
        qk_nope_head_dim=language.get("qk_nope_head_dim", 128, HeadDim),
        qk_rope_head_dim=language.get("qk_rope_head_dim", 64, HeadDim),
        v_head_dim=language.get("v_head_dim", 128, HeadDim),
    )
    check_rotary(language, "qk_rope_head_dim", mla.qk_rope_head_dim)
    return mla
