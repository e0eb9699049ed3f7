# SPDX-License-Identifier: Apache-2.0
"""Rotary positions of config.json: where they may stand, what they mean, what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from fastmmoe.exporter.checkpoint.config_reader import ConfigReader
from fastmmoe.exporter.models.layers import rotary_frequencies
from fastmmoe.exporter.models.rope import Rope, YarnConfig, read_rope, read_yarn_rope
from fastmmoe.runtime.errors import UnsupportedModel

Json = dict[str, Any]
YARN = {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096, "truncate": False}


def plain(language: Json, default_theta: float | None = None) -> Rope:
    return read_rope(ConfigReader(language, prefix="llm_config"), default_theta=default_theta)


def yarn(language: Json) -> YarnConfig:
    reader = ConfigReader({"rope_theta": 1.5e5} | language, prefix="llm_config")
    config = read_yarn_rope(reader, max_position_embeddings=131072).yarn
    assert config is not None
    return config


@pytest.mark.parametrize(
    "language",
    [
        {"rope_theta": 1000000},
        {"rope_theta": 1e6, "rope_scaling": None, "rope_parameters": None},
        {"rope_theta": 1e6, "rope_scaling": {}},
        {"rope_theta": 1e6, "rope_scaling": {"rope_type": "default"}},
        {"rope_theta": 1e6, "rope_scaling": {"type": "default"}},
        {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}},
        {"rope_parameters": {"rope_theta": 1e6}},
        {"rope_theta": 1e6, "rope_parameters": {"rope_type": "default"}},
        {"rope_theta": 1e6, "rope_parameters": {"rope_type": "default", "rope_theta": 1000000}},
        {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default", "partial_rotary_factor": 1.0}},
        {"rope_theta": 1e6, "partial_rotary_factor": 1.0},
        {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}, "rope_scaling": {"type": "default"}},
    ],
)
def test_plain_positions_in_every_form(language: Json) -> None:
    assert plain(language) == Rope(1e6, None)


def test_a_missing_base_is_the_classes_or_refused() -> None:
    assert plain({}, 10000.0) == Rope(10000.0, None)
    with pytest.raises(UnsupportedModel, match=r"llm_config.rope_theta is missing, expected a value of type float"):
        plain({})
    with pytest.raises(UnsupportedModel, match=r"llm_config.rope_parameters.rope_theta is missing"):
        plain({"rope_parameters": {"rope_type": "default"}})


@pytest.mark.parametrize(
    ("language", "message"),
    [
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, r"rope_scaling is \{.*'yarn'.*\}; supported: None"),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, r"rope_scaling is \{.*'linear'.*; supported: None"),
        ({"rope_scaling": {"factor": 4.0}}, r"rope_scaling.factor is not implemented"),
        ({"rope_scaling": [4.0]}, r"rope_scaling is \[4.0\] \(list\), expected a value of type dict or null"),
        ({"rope_parameters": {"rope_type": "yarn"}}, r"rope_parameters.rope_type is 'yarn'; supported: 'default'"),
        ({"rope_parameters": {"type": "yarn"}}, r"rope_parameters.type is 'yarn'; supported: 'default'"),
        ({"rope_parameters": {"mrope_section": [1, 2]}}, r"rope_parameters.mrope_section is not implemented"),
        ({"rope_parameters": {"factor": 2.0}}, r"rope_parameters.factor is not implemented"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, r"rope_parameters.full_attention is not imp"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, r"partial_rotary_factor is 0.5; supported: 1, None"),
        ({"partial_rotary_factor": 0.5}, r"llm_config.partial_rotary_factor is 0.5; supported: 1, None"),
        (
            {"rope_parameters": {"rope_theta": 1e4}},
            r"llm_config.rope_theta is 1000000.0 and .*rope_parameters.rope_theta is 10000.0: expected one value",
        ),
        (
            {"rope_scaling": {"rope_type": "default", "rope_theta": 1e4}},
            r"rope_theta is 1000000.0 and .*rope_scaling.rope_theta is 10000.0: expected one value",
        ),
        (
            {"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
            r"rope_parameters is \{.*\} and .*rope_scaling is .*'yarn'.*: expected one of the two, or the same in both",
        ),
        ({"rope_theta": 1.0}, r"rope_theta is 1.0, expected more than 1, up to 1e\+12"),
        ({"rope_theta": math.nan}, r"rope_theta is nan, expected more than 1"),
        ({"rope_theta": True}, r"rope_theta is True \(bool\), expected a value of type float or null"),
    ],
)
def test_other_positions_are_refused_by_name(language: Json, message: str) -> None:
    with pytest.raises(UnsupportedModel, match=rf"config.json: .*{message}"):
        plain({"rope_theta": 1e6} | language)


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        ({}, 0.1 * math.log(32) + 1),
        ({"attention_factor": None}, 0.1 * math.log(32) + 1),
        ({"attention_factor": 1.25}, 1.25),
        ({"attention_factor": 1}, 1.0),
        ({"attention_factor": 1.25, "mscale": 0.5, "mscale_all_dim": 2.0}, 1.25),
        ({"mscale": 0.707, "mscale_all_dim": 0.707}, 1.0),
        ({"mscale": 1.0, "mscale_all_dim": 0.5}, (0.1 * math.log(32) + 1) / (0.05 * math.log(32) + 1)),
        # One of the two alone means nothing to transformers.
        ({"mscale": 2.0}, 0.1 * math.log(32) + 1),
        ({"mscale_all_dim": 2.0}, 0.1 * math.log(32) + 1),
        ({"factor": 1.0}, 1.0),
    ],
)
def test_attention_factor(block: Json, expected: float) -> None:
    """transformers' _compute_yarn_parameters: as given, else of mscale and mscale_all_dim, else of the factor."""
    for key in ("rope_scaling", "rope_parameters"):
        assert yarn({key: YARN | block}).attention_factor == pytest.approx(expected, rel=1e-12)


def test_yarn_in_every_form() -> None:
    expected = YarnConfig(32.0, 4096, 32.0, 1.0, 0.1 * math.log(32) + 1)
    legacy = {"type" if key == "rope_type" else key: value for key, value in YARN.items()}
    for language in (
        {"rope_scaling": YARN},
        {"rope_scaling": legacy},
        {"rope_scaling": YARN | {"type": "yarn"}},
        {"rope_parameters": YARN | {"rope_theta": 150000}},
        {"rope_parameters": YARN, "rope_scaling": legacy | {"factor": 32, "beta_fast": None}},
        {"rope_scaling": YARN | {"beta_fast": None, "beta_slow": None}},
        {"rope_scaling": YARN, "original_max_position_embeddings": 4096},
    ):
        assert yarn(language) == expected
    without = {key: value for key, value in YARN.items() if key != "original_max_position_embeddings"}
    assert yarn({"rope_scaling": without}).original_max_position_embeddings == 131072


@pytest.mark.parametrize(
    ("language", "message"),
    [
        ({}, r"rope_scaling is missing"),
        ({"rope_scaling": None}, r"rope_scaling is None \(null\), expected a value of type dict"),
        ({"rope_scaling": YARN | {"type": "linear"}}, r"rope_scaling.type is 'linear'; supported: 'yarn', None"),
        ({"rope_scaling": YARN | {"rope_type": "llama3"}}, r"rope_scaling.rope_type is 'llama3'; supported: 'yarn'"),
        ({"rope_scaling": YARN | {"low_freq_factor": 1.0}}, r"rope_scaling.low_freq_factor is not implemented"),
        ({"rope_scaling": YARN | {"truncate": True}}, r"rope_scaling.truncate is True; supported: False"),
        ({"rope_scaling": YARN | {"factor": 0.5}}, r"rope_scaling.factor is 0.5, expected 1 to 1e\+06"),
        ({"rope_scaling": YARN | {"attention_factor": 0}}, r"attention_factor is 0, expected more than 0, up to"),
        ({"rope_scaling": YARN | {"attention_factor": "1"}}, r"attention_factor is '1' \(str\), expected a value of"),
        ({"rope_scaling": YARN | {"mscale": -1.0}}, r"mscale is -1.0, expected more than 0"),
        (
            {"rope_scaling": YARN, "original_max_position_embeddings": 8192},
            r"original_max_position_embeddings is 8192, the rope block means 4096: expected one value",
        ),
        (
            {"rope_scaling": YARN, "rope_parameters": YARN | {"attention_factor": 1.0}},
            r"rope_parameters is \{.*\} and .*rope_scaling is \{.*\}: expected one of the two, or the same in both",
        ),
    ],
)
def test_other_yarn_is_refused_by_name(language: Json, message: str) -> None:
    with pytest.raises(UnsupportedModel, match=rf"config.json: .*{message}"):
        yarn(language)


@pytest.mark.parametrize("original", [4096, 131072, 8, 2])
@pytest.mark.parametrize("betas", [(32.0, 1.0), (1.0, 32.0), (2.0, 2.0)])
def test_frequencies_equal_transformers_formula(original: int, betas: tuple[float, float]) -> None:
    """_compute_yarn_parameters in float64, its correction range upside down or empty, too."""
    theta, dim, factor = 150000.0, 64, 32.0
    fast, slow = (dim * math.log(original / (b * 2 * math.pi)) / (2 * math.log(theta)) for b in betas)
    low, high = max(fast, 0), min(slow, dim - 1)
    high += 0.001 if low == high else 0
    ramp = np.clip((np.arange(dim // 2) - low) / (high - low), 0, 1)
    frequencies = theta ** (np.arange(0, dim, 2) / dim)
    expected = ramp / (factor * frequencies) + (1 - ramp) / frequencies
    found = rotary_frequencies(theta, dim, YarnConfig(factor, original, *betas, 1.0))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)
