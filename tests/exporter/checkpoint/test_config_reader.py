# SPDX-License-Identifier: Apache-2.0
"""Reading config.json: defaults, types, choices, sections, and the list of keys nobody read."""

from __future__ import annotations

import re
from typing import Annotated, Any, TypeAlias

import pytest
from msgspec import Meta

from fastmmoe.exporter.checkpoint.config_reader import ConfigReader, listed
from fastmmoe.exporter.ops import SPARSE_MOE
from fastmmoe.runtime.errors import UnsupportedModel
from fastmmoe.runtime.ranges import ExpertGroups, Experts, ExpertsPerToken, Positive, Width, limits

Tens: TypeAlias = Annotated[int, Meta(ge=1, le=10)]
Share: TypeAlias = Annotated[float, Meta(gt=0, le=1)]

VALUES: dict[str, Any] = {
    "hidden_size": 128,
    "rope_theta": 10000,
    "tie_word_embeddings": False,
    "q_lora_rank": None,
    "mlp_only_layers": [0, 1],
    "candidate_resolutions": [[384, 384]],
    "topk_method": "noaux_tc2",
    "torch_dtype": "bfloat16",
    "vision_config": {"width": 72, "layers": "three", "extra": {"a": 1}},
}


@pytest.fixture
def reader() -> ConfigReader:
    return ConfigReader(VALUES)


def test_get_reads_the_value_or_the_default(reader: ConfigReader) -> None:
    assert reader.get("hidden_size", 1) == 128
    assert reader.get("vocab_size", 102400) == 102400
    assert reader.get("q_lora_rank", 1536, int | None) is None
    assert reader.get("rope_scaling", None, dict | None) is None
    assert reader.get("mlp_only_layers", [], list[int]) == [0, 1]
    assert reader.get("candidate_resolutions", [], list[list[int]]) == [[384, 384]]
    assert reader.get("tie_word_embeddings", True) is False
    theta = reader.get("rope_theta", 1e6)
    assert theta == 10000.0
    assert type(theta) is float


def test_require_reads_the_value(reader: ConfigReader) -> None:
    assert reader.require("hidden_size") == 128
    assert reader.require("hidden_size", Width) == 128
    assert reader.require("q_lora_rank", Width | None) is None


def test_choice_reads_a_supported_value_or_default(reader: ConfigReader) -> None:
    assert reader.choice("torch_dtype", ("bfloat16", "float16"), "float16") == "bfloat16"
    assert reader.choice("scoring_func", ("softmax", "sigmoid"), "softmax") == "softmax"


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (
            lambda r: r.get("torch_dtype", 1),
            "config.json: torch_dtype is 'bfloat16' (str), expected a value of type int",
        ),
        (
            lambda r: r.get("tie_word_embeddings", 1),
            "tie_word_embeddings is False (bool), expected a value of type int",
        ),
        (
            lambda r: r.get("tie_word_embeddings", 1.0),
            "tie_word_embeddings is False (bool), expected a value of type float",
        ),
        (lambda r: r.get("hidden_size", True), "hidden_size is 128 (int), expected a value of type bool"),
        (lambda r: r.get("q_lora_rank", 1536), "q_lora_rank is None (null), expected a value of type int"),
        (lambda r: r.get("torch_dtype", None, int | None), "is 'bfloat16' (str), expected a value of type int or null"),
        (lambda r: r.get("candidate_resolutions", [], list[int]), "expected a value of type list[int]"),
        (lambda r: r.get("hidden_size", 1, Tens), "config.json: hidden_size is 128, expected 1 to 10"),
        (lambda r: r.get("hidden_size", 1, Tens | None), "hidden_size is 128, expected 1 to 10 or null"),
        (lambda r: r.get("hidden_size", 1, Share), "hidden_size is 128, expected more than 0, up to 1"),
        (
            lambda r: r.get("candidate_resolutions", [], list[list[Tens]]),
            "candidate_resolutions is [[384, 384]], expected a list of a list of 1 to 10",
        ),
        (lambda r: r.require("vocab_size", Width), "vocab_size is missing, expected a value of type int"),
        (lambda r: r.require("vocab_size"), "config.json: vocab_size is missing, expected a value"),
        (lambda r: r.require("vocab_size", int), "config.json: vocab_size is missing, expected a value of type int"),
        (
            lambda r: r.require("hidden_size", str),
            "config.json: hidden_size is 128 (int), expected a value of type str",
        ),
        (
            lambda r: r.choice("topk_method", ("greedy", "noaux_tc"), "greedy"),
            "config.json: topk_method is 'noaux_tc2'; supported: 'greedy', 'noaux_tc'",
        ),
        (lambda r: r.choice("tie_word_embeddings", (0, 1), 0), "tie_word_embeddings is False; supported: 0, 1"),
        (
            lambda r: r.choice("gate", ("greedy",), "gready"),
            "gate is missing, which means 'gready'; supported: 'greedy'",
        ),
        (lambda r: r.section("text_config"), "config.json: text_config is missing, expected a value of type dict"),
        (lambda r: r.section("hidden_size"), "config.json: hidden_size is 128 (int), expected a value of type dict"),
        (lambda r: r.section("hidden_size", optional=True), "hidden_size is 128 (int), expected a value of type dict"),
        (lambda r: r.section("vision_config").get("layers", 27), "config.json: vision_config.layers is 'three' (str)"),
    ],
)
def test_refused_values_name_file_key_found_and_expected(reader: ConfigReader, read: Any, message: str) -> None:
    with pytest.raises(UnsupportedModel, match=re.escape(message)) as raised:
        read(reader)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 0, -1, 10**400, 1e12 + 1e6])
def test_no_kind_of_number_beyond_every_limit_passes(value: float) -> None:
    with pytest.raises(UnsupportedModel, match=r"mlp_ratio is .*, expected more than 0, up to 1e\+12"):
        ConfigReader({"mlp_ratio": value}).get("mlp_ratio", 1.0, Positive)


def test_integers_become_floats_where_those_are_read() -> None:
    reader = ConfigReader({"eps": 1, "mean": [0, 0.5]})
    assert repr(reader.require("eps", Positive | None)) == "1.0"
    assert repr(reader.get("mean", [], list[Share | float])) == "[0.0, 0.5]"
    assert repr(reader.require("eps", Width)) == "1"


def test_large_deep_and_odd_values_make_short_lines() -> None:
    deep: Any = []
    for _ in range(500):
        deep = [deep, {"k": deep}]
    text = "a\n\x1b[31m\ud800" * 1000
    odd = {"list": list(range(10**5)), "deep": deep, "text": text, "k\ny" * 50: 1, "int": 10**4000}
    reader = ConfigReader(odd)
    for key in odd:
        for read in (lambda k: reader.get(k, None, dict | None), lambda k: reader.choice(k, (None,), None)):
            with pytest.raises(UnsupportedModel) as caught:
                read(key)
            assert len(str(caught.value)) < 400 and str(caught.value).isprintable()
    assert all(name.isprintable() and len(name) < 120 for name in ConfigReader(odd).unread())


def test_another_file_is_named_in_messages() -> None:
    with pytest.raises(UnsupportedModel, match=re.escape("processor_config.json: patch_size is missing")):
        ConfigReader({}, "processor_config.json").require("patch_size")


def test_many_names_make_a_short_line() -> None:
    assert listed(["a", "b"]) == "a, b"
    names = [f"k{i}" for i in range(100_000)]
    assert listed(names) == ", ".join(names[:40]) + " and 99960 more"


def test_ranges_are_those_of_the_operators_contract() -> None:
    limits_of = {attribute.name: attribute.limits for attribute in SPARSE_MOE.attributes}
    for name, kind in (("top_k", ExpertsPerToken), ("n_group", ExpertGroups), ("topk_group", ExpertGroups)):
        low, is_open, high = limits(kind)
        assert (low, high) == limits_of[name] and not is_open
    sizes = {size.letter: size for size in SPARSE_MOE.sizes}
    for letter, kind in (("H", Width), ("I", Width), ("E", Experts)):
        assert limits(kind)[2] <= sizes[letter].greatest


def test_unread_lists_exactly_the_keys_nobody_asked_for() -> None:
    reader = ConfigReader(VALUES | {"projector_config": {}})
    assert reader.unread() == sorted([*VALUES, "projector_config"])
    reader.get("hidden_size", 1)
    reader.get("vocab_size", 1)
    reader.require("rope_theta")
    reader.choice("torch_dtype", ("bfloat16",), "bfloat16")
    reader.section("projector_config")
    reader.section("text_config", optional=True).get("width", 1)
    reader.section("vision_config").get("width", 1)
    assert reader.section("vision_config") is reader.section("vision_config")
    left = ["candidate_resolutions", "mlp_only_layers", "q_lora_rank", "tie_word_embeddings", "topk_method"]
    assert reader.unread() == [*left, "vision_config.extra", "vision_config.layers"]
    reader.section("vision_config").section("extra")
    assert reader.unread() == [*left, "vision_config.extra.a", "vision_config.layers"]
