# SPDX-License-Identifier: Apache-2.0
"""Options of a request: what counts as a number, what is refused and in which words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.request.options import RequestOptions

SHARES = ("retention", "pruning_rate", "alpha", "temperature", "top_p", "deadline_ms", "deadline")
COUNTS = ("seed", "max_new_tokens", "max_tiles", "visual_top_k", "top_k", "logprobs")
NUMBERS = SHARES + COUNTS
NO_NUMBERS: tuple[Any, ...] = (
    True,
    False,
    np.True_,
    "1",
    "0.5",
    b"1",
    float("nan"),
    float("inf"),
    -float("inf"),
    {},
    object(),
    1j,
    "\ud800",
    bytearray(b"1"),
    memoryview(b"1"),
    {1},
    frozenset({1}),
    np.timedelta64(1),
    np.datetime64("2020-01-01"),
)


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", NO_NUMBERS, ids=lambda value: type(value).__name__)
def test_what_is_no_number_is_refused(name: str, value: Any) -> None:
    for options in ({name: value}, {name: [value]}):
        with pytest.raises(InvalidRequest, match=f"^{name} .*: expected ") as error:
            RequestOptions.of(options)
        assert "\n" not in str(error.value)
        with pytest.raises(InvalidRequest):
            RequestOptions(**options)


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", [1.5, 1.0, np.float32(2), -0.5])
def test_counts_are_whole_numbers(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=f"^{name} .*: expected .*a whole number"):
        RequestOptions.of({name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("retention", value) for value in (0, 0.0, -0.1, 1.0001, 2)),
        *(("pruning_rate", value) for value in (1, 1.0, -0.1)),
        *(("alpha", value) for value in (-0.1, 1.1)),
        *(("max_new_tokens", value) for value in (0, -1)),
        *(("max_tiles", value) for value in (0, -1)),
        *(("seed", value) for value in (-1, None)),
        ("max_new_tokens", None),
        ("retention", 10**400),
        ("method", 3),
        ("method", b"fastv"),
        *(("temperature", value) for value in (-0.1, None, 10**400)),
        *(("top_p", value) for value in (0, 1.01, -1, None)),
        *(("top_k", value) for value in (-2, None)),
        *(("logprobs", value) for value in (-1, 21)),
        *(("deadline_ms", value) for value in (0, -1)),
        *(("stop", value) for value in ("", ["a", ""], [1], 3, b"a", "\ud800", {"a"})),
        *(("choices", value) for value in ("yes", [], [""], [1], 3, ["\udfff"], {"a": 1})),
    ],
)
def test_ranges(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=f"^{name} .*: expected ") as error:
        RequestOptions.of({name: value})
    assert len(str(error.value)) < 200


def test_numbers_of_numpy_count_as_pythons() -> None:
    options = RequestOptions.of(
        {
            "retention": np.float32(0.5),
            "seed": np.int64(3),
            "max_new_tokens": np.uint8(7),
            "visual_top_k": np.array([1, 2]),
            "alpha": 1,
        }
    )
    expected = RequestOptions(retention=0.5, seed=3, max_new_tokens=7, visual_top_k=(1, 2), alpha=1.0)
    assert options == expected
    assert type(options.seed) is type(options.max_new_tokens) is int
    assert type(options.retention) is type(options.alpha) is float
    assert RequestOptions.of({"visual_top_k": (np.int32(1), 2)}).visual_top_k == (1, 2)
    assert RequestOptions.of({"visual_top_k": range(1, 3)}).visual_top_k == (1, 2)


def test_texts() -> None:
    assert RequestOptions().stops == RequestOptions(stop=None).stops == RequestOptions.of({"stop": []}).stops == ()
    assert RequestOptions(stop="a").stops == ("a",)
    assert RequestOptions.of({"stop": ["a", "\n"]}).stops == ("a", "\n")
    assert RequestOptions.of({"choices": ["left", "right"]}).choices == ("left", "right")


def test_choices_have_no_other_rule_beside_them() -> None:
    with pytest.raises(InvalidRequest, match=r"^choices hold 'b' twice: expected different texts$"):
        RequestOptions.of({"choices": ["a", "b", "b"]})
    with pytest.raises(InvalidRequest, match=r"by their likelihood: leave out temperature, stop, logprobs$"):
        RequestOptions.of({"choices": ["a"], "temperature": 1, "stop": "b", "logprobs": 0})
    with pytest.raises(InvalidRequest, match="give deadline_ms or deadline, not both"):
        RequestOptions(deadline_ms=1.0, deadline=2.0)


def test_what_needs_more_than_the_most_probable_token() -> None:
    greedy = [RequestOptions(), RequestOptions(temperature=1, top_k=1), RequestOptions(top_p=0.5, top_k=3, stop="a")]
    assert not any(one.needs_logits or one.is_sampled for one in greedy)
    assert RequestOptions(temperature=0.1).is_sampled and RequestOptions(temperature=0.1).needs_logits
    for one in (RequestOptions(logprobs=0), RequestOptions(choices=("a",))):
        assert one.needs_logits and not one.is_sampled


def test_defaults_and_either_of_two() -> None:
    assert RequestOptions.of({}) == RequestOptions()
    assert RequestOptions().max_new_tokens == 64
    assert RequestOptions(pruning_rate=0.75).resolved_retention == 0.25
    assert RequestOptions(retention=0.75).resolved_retention == 0.75
    with pytest.raises(InvalidRequest, match="give retention or pruning_rate, not both"):
        RequestOptions(pruning_rate=0.5, retention=0.5)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("max_tokens", "option max_tokens is called max_new_tokens here"),
        ("max_length", "is called max_new_tokens here"),
        ("max_new_token", "did you mean max_new_tokens?"),
        ("retenton", "did you mean retention?"),
        ("prunning_rate", "did you mean pruning_rate?"),
        ("temprature", "option temprature is unknown; did you mean temperature?"),
        ("do_sample", "temperature, top_p and top_k choose among tokens"),
        ("num_beams", "temperature, top_p and top_k choose among tokens"),
        ("min_p", "temperature, top_p and top_k choose among tokens"),
        ("stop_strings", "is called stop here"),
        ("top_logprobs", "is called logprobs here"),
        ("guided_choice", "is called choices here"),
        ("timeout", "is called deadline_ms here"),
        ("streamer", "generate_stream gives the answer token by token"),
        ("threads", "VLM.bundle, .... takes it"),
        ("images", "belongs into the messages"),
        ("zzz", "is unknown; there are method, retention,"),
    ],
)
def test_unknown_names_say_what_to_do(name: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        RequestOptions.of({name: 1})


def holds_itself() -> list[Any]:
    values: list[Any] = []
    values.append(values)
    return values


@pytest.mark.parametrize("name", ["retention", "pruning_rate", "alpha", "visual_top_k", "max_tiles", "method"])
def test_values_that_python_does_not_show(name: str) -> None:
    """Python refuses to print integers of thousands of digits."""
    for value, shown in ((10**5000, "of type int"), (-(10**5000), "of type int"), (holds_itself(), "of type list")):
        with pytest.raises(InvalidRequest, match=f"^{name} {shown}: expected "):
            RequestOptions.of({name: value})


def test_names_and_values_stay_on_one_line() -> None:
    class Broken:
        def __repr__(self) -> str:
            return "a\nb"

    for options in ({"a\nb": 1}, {"alpha": Broken()}):
        with pytest.raises(InvalidRequest) as error:
            RequestOptions.of(options)
        assert "a\\nb" in str(error.value) and "\n" not in str(error.value)
