# SPDX-License-Identifier: Apache-2.0
"""The tensors of a checkpoint by its config.json, and random values that behave like trained ones.

All are bfloat16. Values come from blocks of normal numbers, one for each pair of mean and deviation, as fast as memory
copies: a tensor is a run through a block, which begins again at its end. Runs of different tensors start at different
places, and a block's length is prime, so no two tensors, experts or rows are equal.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from fastmmoe.exporter.checkpoint.config_reader import ConfigReader
from fastmmoe.exporter.models.family import family_of
from fastmmoe.runtime.types import Array

Shape = tuple[int, ...]
BLOCK = 4194301
"""Numbers of a block: the greatest prime below 2^22."""
_STEP = 1000003

# Standard deviations for inputs of unit variance. A router logit has the first: top-k is then far from uniform. An
# attention score has the second, or the square of the third where norms of queries and keys (Qwen3) set it alone.
_ROUTER_GAIN = 2.5
_QUERY_GAIN = 2.5
_QUERY_KEY_NORM = 1.6
_LOGIT_GAIN = 3.0
# Of the projector's last layer: features then are as long as embeddings.
_FEATURE_GAIN = 1.7

# Name -> mean and deviation.
_FIXED: tuple[tuple[str, float, float], ...] = (
    (r"self_attn\.[qk]_norm\.weight", _QUERY_KEY_NORM, 0.1),
    (r"(norm\d?|layernorm\w*|multi_modal_projector\.layer_norm|mlp1\.0)\.weight", 1.0, 0.1),
    (r"(ls[12]|lambda_[12])", 0.5, 0.1),
    (r"e_score_correction_bias", 0.0, 0.02),
    (r"embed_tokens\.weight", 0.0, 1.0),
    (r"(class_embedding|cls_token|pos(ition)?_embed\w*|latent)", 0.0, 0.5),
    (r"(image_newline|view_seperator)", 0.0, 1.0),
    (r"(bias|sinks)", 0.0, 0.1),
)
# Name of a matrix -> gain.
_GAINS: tuple[tuple[str, float], ...] = (
    (r"mlp\.(gate|router)\.weight", _ROUTER_GAIN),
    (r"lm_head\.weight", _LOGIT_GAIN),
    (r"(linear_2|mlp1\.3|projector\.layers\.2)\.weight", _FEATURE_GAIN),
)


def tensors_of(config: dict[str, Any]) -> dict[str, Shape]:
    """Name -> shape of every tensor, a layer's beside each other."""
    family = family_of(config["model_type"])
    sizes: Any = family.read_config(ConfigReader(config))
    shapes = {name: shape for rule in family.weight_map(sizes).values() for name, shape in rule.sources}
    # The graphs have no use for the pooling head that DeepSeek-VL2 publishes.
    return shapes | (_pooling_head(sizes.vision) if any("attn_pool" in name for name in family.DROPPED_TENSORS) else {})


def _pooling_head(vision: Any) -> dict[str, Shape]:
    width, hidden = vision.width, vision.mlp_width
    matrices = {
        "q": (width, width),
        "kv": (2 * width, width),
        "proj": (width, width),
        "mlp.fc1": (hidden, width),
        "mlp.fc2": (width, hidden),
    }
    parts: dict[str, Shape] = {"latent": (1, 1, width), "norm.weight": (width,), "norm.bias": (width,)}
    for name, shape in matrices.items():
        parts |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return {f"vision.attn_pool.{name}": shape for name, shape in parts.items()}


def distribution(name: str, shape: Shape, *, norms_queries: bool) -> tuple[float, float]:
    """Mean and standard deviation of a tensor's values; norms_queries: the model has norms of queries and keys."""
    for pattern, mean, std in _FIXED:
        if re.search(rf"(^|[._]){pattern}$", name):
            return mean, std
    if name.endswith("_bias"):
        return 0.0, 0.1
    gain = next((gain for pattern, gain in _GAINS if re.search(rf"(^|\.){pattern}$", name)), 1.0)
    if name.endswith("self_attn.q_proj.weight") and not norms_queries:
        gain = _QUERY_GAIN
    # Experts of gpt-oss are [E, inputs, outputs], everything else is [outputs, inputs, ...].
    inputs = shape[1] if len(shape) == 3 else math.prod(shape[1:])
    return 0.0, gain / math.sqrt(inputs)


class RandomValues:
    """Values of the tensors of one checkpoint, which follow from the seed.

    Args:
        tensors: see `tensors_of`.
        seed: 0 or more.
    """

    def __init__(self, tensors: dict[str, Shape], seed: int) -> None:
        self._tensors, self._places = tensors, {name: i for i, name in enumerate(tensors)}
        self._norms_queries = any(name.endswith("self_attn.q_norm.weight") for name in tensors)
        self._normal = np.random.default_rng(seed).standard_normal(BLOCK, np.float32)
        self._block = functools.lru_cache(maxsize=16)(self._make_block)

    def _make_block(self, mean: float, std: float) -> Array:
        """Bits of bfloat16 [BLOCK]."""
        values = torch.from_numpy(self._normal) * std + mean
        bits: Array = values.to(torch.bfloat16).view(torch.int16).numpy()
        return bits

    def runs(self, name: str) -> Iterator[Array]:
        """The tensor's values as bits of bfloat16, in parts of at most BLOCK."""
        shape = self._tensors[name]
        block = self._block(*distribution(name, shape, norms_queries=self._norms_queries))
        place, left = self._places[name] * _STEP % BLOCK, math.prod(shape)
        while left:
            run = block[place : place + left]
            yield run
            place, left = 0, left - len(run)
