# SPDX-License-Identifier: Apache-2.0
"""config.json of InternVL3.5, of the original and of the Hugging Face layout.

Source of keys and defaults: the official configuration classes (OpenGVLab/InternVL) and those of transformers, 4.52 to
5.23.
"""

from __future__ import annotations

from dataclasses import dataclass

from fastmmoe.exporter.checkpoint.config_reader import ConfigReader, shown
from fastmmoe.exporter.checkpoint.known_keys import INTERNVL, sort_keys
from fastmmoe.exporter.models.config_checks import MoeConfig, check_heads, check_moe, check_rotary, check_tower
from fastmmoe.exporter.models.rope import Rope, YarnConfig, read_rope, read_yarn_rope
from fastmmoe.exporter.ops.sparse_moe.contract import SWIGLU_OAI_ALPHA
from fastmmoe.runtime.errors import UnsupportedModel
from fastmmoe.runtime.ranges import (
    Epsilon,
    Experts,
    ExpertsPerToken,
    HeadDim,
    Heads,
    Layers,
    Pixels,
    Positions,
    Positive,
    VocabSize,
    Width,
)

MODEL_TYPES = ("internvl", "internvl_chat")


@dataclass(frozen=True)
class VisionConfig:
    image_size: int
    patch_size: int
    width: int
    mlp_width: int
    layers: int
    heads: int
    qkv_bias: bool
    qk_norm: bool
    norm_type: str
    norm_eps: float

    @property
    def grid(self) -> int:
        return self.image_size // self.patch_size

    @property
    def rows_per_tile(self) -> int:
        """With the class token."""
        return 1 + self.grid**2

    @property
    def tokens_per_tile(self) -> int:
        """Pixel shuffle makes one token of 2 x 2 patches."""
        return (self.grid // 2) ** 2

    @property
    def projector_inputs(self) -> int:
        return 4 * self.width


@dataclass(frozen=True)
class Config:
    """Values of config.json that the graphs need, of either layout."""

    is_hf_layout: bool
    vision: VisionConfig
    language_model_type: str
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    moe: MoeConfig
    rms_norm_eps: float
    rope_theta: float
    yarn: YarnConfig | None
    sliding_window: int | None
    sliding_layers: tuple[int, ...]
    max_position_embeddings: int

    @property
    def is_gpt_oss(self) -> bool:
        return self.language_model_type == "gpt_oss"

    @property
    def query_key_dim(self) -> int:
        return self.head_dim

    @property
    def value_dim(self) -> int:
        return self.head_dim

    @property
    def rope_dim(self) -> int:
        return self.head_dim

    @property
    def kv_lora_rank(self) -> int:
        return 0

    @property
    def shared_intermediate_size(self) -> int:
        return 0

    @property
    def dense_intermediate_size(self) -> int:
        return 0

    @property
    def moe_layers(self) -> tuple[int, ...]:
        return tuple(range(self.num_hidden_layers))

    @property
    def full_attention_layers(self) -> tuple[int, ...]:
        return tuple(i for i in range(self.num_hidden_layers) if i not in self.sliding_layers)


def read_config(reader: ConfigReader) -> Config:
    """The model's configuration, original (`llm_config`) or Hugging Face (`text_config`) layout.

    Raises:
        UnsupportedModel: a value is missing, outside its range, not implemented, or does not go with another.
    """
    is_hf_layout = reader.choice("model_type", ("internvl", "internvl_chat"), "internvl_chat") == "internvl"
    language = reader.section("text_config" if is_hf_layout else "llm_config")
    kind = language.choice("model_type", ("qwen3_moe", "gpt_oss"), "")
    _read_projector(reader, is_hf_layout)
    _read_tie(reader, language)
    language.choice("hidden_act", ("silu",), "silu")
    layers = language.require("num_hidden_layers", Layers)
    sliding = _read_sliding_layers(language, layers, is_gpt_oss=kind == "gpt_oss")
    heads, kv_heads = (language.require(f"num_{part}_heads", Heads) for part in ("attention", "key_value"))
    head_dim = language.require("head_dim", HeadDim)
    check_heads(language, heads=heads, kv_heads=kv_heads)
    check_rotary(language, "head_dim", head_dim)
    moe = _read_gpt_oss_moe(language) if kind == "gpt_oss" else _read_qwen3_moe(language)
    check_moe(language, moe)
    max_position_embeddings = language.require("max_position_embeddings", Positions)
    rope = _read_rope(language, kind, max_position_embeddings)
    config = Config(
        is_hf_layout=is_hf_layout,
        vision=_read_vision(reader.section("vision_config"), is_hf_layout),
        language_model_type=kind,
        vocab_size=language.require("vocab_size", VocabSize),
        hidden_size=language.require("hidden_size", Width),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        moe=moe,
        rms_norm_eps=language.get("rms_norm_eps", 1e-5 if kind == "gpt_oss" else 1e-6, Epsilon),
        rope_theta=rope.theta,
        yarn=rope.yarn,
        sliding_window=language.require("sliding_window", Positions) if sliding else None,
        sliding_layers=sliding,
        max_position_embeddings=max_position_embeddings,
    )
    sort_keys(INTERNVL, reader, language)
    return config


def count_small(c: Config) -> dict[str, int]:
    """Parameters that are no matrices, by part; see `FamilyConfig`."""
    H, D, layers, E = c.hidden_size, c.head_dim, c.num_hidden_layers, c.moe.num_experts
    q, kv = c.num_attention_heads * D, c.num_key_value_heads * D
    # Biases of the four projections and sinks, or norms of the heads of queries and keys.
    attention = q + 2 * kv + H + c.num_attention_heads if c.is_gpt_oss else 2 * D
    biases = E * (2 * c.moe.intermediate_size + H) if c.moe.expert_bias else 0
    return {
        "vision": _count_small_vision(c.vision) + 2 * H,
        "attention": layers * attention,
        "expert_biases": layers * biases,
        "norms": (2 * layers + 1) * H,
        # Every router has a correction, of zeros.
        "router": layers * E * (2 if c.moe.expert_bias else 1),
        "rotary": D // 2,
    }


def _count_small_vision(v: VisionConfig) -> int:
    """Of the tower and the projector's norm: class token, positions, norms, scales and biases."""
    of_norm = v.width * (2 if v.norm_type == "layer_norm" else 1)
    # Two scales, the biases of proj and fc2; that of fc1; those of qkv; norms of whole rows of q and k.
    block = 2 * of_norm + 4 * v.width + v.mlp_width + 3 * v.width * v.qkv_bias + 2 * v.width * v.qk_norm
    return v.width * (1 + v.rows_per_tile + 1) + v.layers * block + 2 * v.projector_inputs


def _read_projector(reader: ConfigReader, is_hf_layout: bool) -> None:
    reader.choice("downsample_ratio", (0.5,), 0.5)
    if is_hf_layout:
        reader.choice("vision_feature_layer", (-1,), -1)
        reader.choice("vision_feature_select_strategy", ("default",), "default")
        reader.choice("projector_hidden_act", ("gelu",), "gelu")
    else:
        reader.choice("select_layer", (-1,), -1)
        reader.choice("ps_version", ("v2",), "v1")
        reader.choice("pad2square", (False,), False)


def _read_tie(reader: ConfigReader, language: ConfigReader) -> None:
    """Refuse a head that is the embedding; the language model's own key decides, and its class means False.

    At the top level, transformers 4 neither reads the key nor writes it. Version 5 reads True where it is missing and
    writes that, but ties only where the weights hold no other head; and here they must hold one.
    """
    language.choice("tie_word_embeddings", (False,), False)
    reader.get("tie_word_embeddings", None, bool | None)


def _read_qwen3_moe(language: ConfigReader) -> MoeConfig:
    language.choice("attention_bias", (False,), False)
    language.choice("decoder_sparse_step", (1,), 1)
    language.choice("mlp_only_layers", ([], None), [])
    language.choice("use_sliding_window", (False,), False)
    return MoeConfig(
        num_experts=_read_experts(language),
        top_k=language.require("num_experts_per_tok", ExpertsPerToken),
        intermediate_size=language.require("moe_intermediate_size", Width),
        scoring_func="softmax",
        norm_topk_prob=language.get("norm_topk_prob", False),
    )


def _read_gpt_oss_moe(language: ConfigReader) -> MoeConfig:
    language.choice("attention_bias", (True,), True)
    language.choice("swiglu_alpha", (SWIGLU_OAI_ALPHA,), SWIGLU_OAI_ALPHA)
    top_k = language.require("num_experts_per_tok", ExpertsPerToken)
    language.choice("experts_per_token", (top_k,), top_k)
    return MoeConfig(
        num_experts=_read_experts(language),
        top_k=top_k,
        intermediate_size=language.require("intermediate_size", Width),
        scoring_func="topk_softmax",
        activation="swiglu_oai",
        swiglu_limit=language.get("swiglu_limit", 7.0, Positive),
        expert_bias=True,
    )


def _read_experts(language: ConfigReader) -> int:
    """Experts of a layer, which stand under either name."""
    experts = language.get("num_experts", None, Experts)
    local_experts: int | None = language.get("num_local_experts", experts, Experts)
    if local_experts is None or experts not in (None, local_experts):
        raise UnsupportedModel(
            f"config.json: num_experts {experts} and num_local_experts {local_experts}: expected one count"
        )
    return local_experts


def _read_sliding_layers(language: ConfigReader, layers: int, *, is_gpt_oss: bool) -> tuple[int, ...]:
    """Layers with a window; all of Qwen3's layers have full attention, and its files rarely say so."""
    supported = ["sliding_attention", "full_attention"] if is_gpt_oss else ["full_attention"]
    kinds = language.require("layer_types", list) if is_gpt_oss else language.get("layer_types", None, list | None)
    if kinds is None:
        return ()
    unknown = sorted({shown(kind) for kind in kinds[:layers] if kind not in supported})
    if unknown or len(kinds) != layers:
        raise UnsupportedModel(
            f"{language.name('layer_types')} has {len(kinds)} entries{''.join(f', {kind}' for kind in unknown[:3])}; "
            f"expected {layers} of {' and '.join(supported)}"
        )
    return tuple(i for i, kind in enumerate(kinds) if kind == "sliding_attention")


def _read_rope(language: ConfigReader, kind: str, max_position_embeddings: int) -> Rope:
    if kind == "gpt_oss":
        return read_yarn_rope(language, max_position_embeddings=max_position_embeddings)
    return read_rope(language, default_theta=None)


def _read_vision(vision: ConfigReader, is_hf_layout: bool) -> VisionConfig:
    def square(key: str, default: int) -> int:
        value = vision.get(key, default, Pixels | list[Pixels])
        sides = {value} if isinstance(value, int) else set(value)
        vision.check(key, value, len(sides) == 1, "a square")
        return int(sides.pop())

    kind = "internvl_vision" if is_hf_layout else "intern_vit_6b"
    vision.choice("model_type", (kind,), kind)
    vision.choice("num_channels", (3,), 3)
    vision.choice("hidden_act", ("gelu",), "gelu")
    if is_hf_layout:
        # Without mean pooling the Hugging Face class adds a final norm that these models do not have.
        vision.choice("use_mean_pooling", (True,), True)
        vision.choice("use_absolute_position_embeddings", (True,), True)
        vision.choice("use_mask_token", (False,), False)
    config = VisionConfig(
        image_size=square("image_size", 448),
        patch_size=square("patch_size", 14),
        width=vision.require("hidden_size", Width),
        mlp_width=vision.require("intermediate_size", Width),
        layers=vision.require("num_hidden_layers", Layers),
        heads=vision.require("num_attention_heads", Heads),
        qkv_bias=vision.require("attention_bias" if is_hf_layout else "qkv_bias", bool),
        qk_norm=vision.require("use_qk_norm" if is_hf_layout else "qk_normalization", bool),
        norm_type=vision.choice("norm_type", ("layer_norm", "rms_norm"), "layer_norm" if is_hf_layout else "rms_norm"),
        norm_eps=vision.get("layer_norm_eps", 1e-6, Epsilon),
    )
    check_tower(
        vision,
        "hidden_size",
        width=config.width,
        heads=config.heads,
        image_size=config.image_size,
        patch=config.patch_size,
    )
    vision.check("image_size", config.image_size, config.grid % 2 == 0, "an even number of patches along a side")
    return config
