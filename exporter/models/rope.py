# SPDX-License-Identifier: Apache-2.0
"""Rotary positions in config.json: rope_theta, rope_scaling and rope_parameters.

Source: transformers' PreTrainedConfig and modeling_rope_utils, 4.52 to 5.23. Versions before 5 write rope_theta and
rope_scaling, later ones rope_parameters, which holds both; a file that contradicts itself is read by one in one way and
by the other in another, so it is refused.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from fastmmoe.exporter.checkpoint.config_reader import ConfigReader, is_same, shown
from fastmmoe.runtime.errors import UnsupportedModel
from fastmmoe.runtime.ranges import Positions, Positive, RotaryBase, RotaryScale, Turns

BLOCKS = ("rope_parameters", "rope_scaling")


@dataclass(frozen=True)
class YarnConfig:
    """YaRN scaling of gpt-oss (no rounding of the correction range); attention_factor is on cosines and sines."""

    factor: float
    original_max_position_embeddings: int
    beta_fast: float
    beta_slow: float
    attention_factor: float


@dataclass(frozen=True)
class Rope:
    """Base of the rotary frequencies and, where positions are stretched, how."""

    theta: float
    yarn: YarnConfig | None


def read_rope(language: ConfigReader, *, default_theta: float | None) -> Rope:
    """Rotary positions without scaling.

    Args:
        default_theta: of the model's configuration class; None = the file must say it.
    Raises:
        UnsupportedModel: any scaling, two values for one thing, an unknown key of a rope block.
    """
    block = _read_block(language)
    if block is not None:
        kind = block.values.get("rope_type", block.values.get("type", "default"))
        if kind != "default" and language.values.get("rope_scaling"):
            language.choice("rope_scaling", (None,), None)
        _check_type(block, "default")
        _refuse_unread(block)
    return Rope(_read_theta(language, block, default_theta), None)


def read_yarn_rope(language: ConfigReader, *, max_position_embeddings: int) -> Rope:
    """Rotary positions with YaRN, which the file must describe.

    Raises:
        UnsupportedModel: no or another scaling, two values for one thing, an unknown key of a rope block.
    """
    block = _read_block(language) or language.section("rope_scaling")
    _check_type(block, "yarn")
    block.choice("truncate", (False,), True)
    factor = block.require("factor", RotaryScale)
    original = block.get("original_max_position_embeddings", None, Positions | None) or max_position_embeddings
    beside = language.get("original_max_position_embeddings", None, Positions | None)
    if beside not in (None, original):
        raise UnsupportedModel(
            f"{language.name('original_max_position_embeddings')} is {beside}, the rope block means {original}: "
            "expected one value"
        )
    yarn = YarnConfig(
        factor=factor,
        original_max_position_embeddings=original,
        beta_fast=block.get("beta_fast", None, Turns | None) or 32.0,
        beta_slow=block.get("beta_slow", None, Turns | None) or 1.0,
        attention_factor=_read_attention_factor(block, factor),
    )
    rope = Rope(_read_theta(language, block, None), yarn)
    _refuse_unread(block)
    return rope


def _read_attention_factor(block: ConfigReader, factor: float) -> float:
    """What cosines and sines are multiplied by: as given, else by mscale and mscale_all_dim, else by the factor."""
    given = block.get("attention_factor", None, Positive | None)
    mscale, mscale_all_dim = (block.get(key, None, Positive | None) for key in ("mscale", "mscale_all_dim"))

    def scaled(by: float) -> float:
        return 0.1 * by * math.log(factor) + 1.0

    if given is not None:
        return float(given)
    if mscale is not None and mscale_all_dim is not None:
        return scaled(mscale) / scaled(mscale_all_dim)
    return scaled(1.0)


def _read_block(language: ConfigReader) -> ConfigReader | None:
    """The object that describes RoPE; where there are two, they must say the same."""
    given = [key for key in BLOCKS if language.get(key, None, dict | None)]
    if len(given) == 2 and not is_same(*(_comparable(language.values[key]) for key in given)):
        found = " and ".join(f"{language.name(key)} is {shown(language.values[key])}" for key in given)
        raise UnsupportedModel(f"{found}: expected one of the two, or the same in both")
    for key in given:
        language.section(key).choice("partial_rotary_factor", (1, None), None)
    language.choice("partial_rotary_factor", (1, None), None)
    return language.section(given[0]) if given else None


def _comparable(block: dict[str, Any]) -> dict[str, Any]:
    """A block without what means nothing and without rope_theta, which is compared by itself."""
    block = {"rope_type": block.get("type"), **block}
    return {k: v for k, v in block.items() if v is not None and k not in ("type", "rope_theta")}


def _check_type(block: ConfigReader, supported: str) -> None:
    legacy = block.choice("type", (supported, None), None)
    block.choice("rope_type", (supported,), legacy or "default")


def _read_theta(language: ConfigReader, block: ConfigReader | None, default: float | None) -> float:
    owners = [language] + [language.section(key) for key in BLOCKS if language.values.get(key)]
    found = {owner.name("rope_theta"): owner.get("rope_theta", None, RotaryBase | None) for owner in owners}
    values = {theta for theta in found.values() if theta is not None}
    if len(values) > 1:
        both = " and ".join(f"{name} is {theta}" for name, theta in found.items() if theta is not None)
        raise UnsupportedModel(f"{both}: expected one value")
    if not values:
        return float(default if default is not None else (block or language).require("rope_theta", RotaryBase))
    return float(values.pop())


def _refuse_unread(block: ConfigReader) -> None:
    """Raise UnsupportedModel for a key of a rope block that nobody read: it may change every position."""
    block.get("rope_theta", None, RotaryBase | None)
    for name in block.unread():
        raise UnsupportedModel(f"{block.file}: {name} is not implemented: expected a rope block without this key")
