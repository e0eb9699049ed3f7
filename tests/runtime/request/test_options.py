# SPDX-License-Identifier: Apache-2.0
"""Options of a request: what counts as a number, what is refused and in which words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.request.options import RequestOptions

NUMBERS = ("retention", "pruning_rate", "alpha", "seed", "max_new_tokens", "max_tiles", "visual_top_k")
SHARES = NUMBERS[:3]
COUNTS = NUMBERS[3:]
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
        ("temperature", "option temperature is unknown: answers are greedy"),
        ("temprature", "option temprature is unknown: answers are greedy"),
        ("top_p", "answers are greedy"),
        ("do_sample", "answers are greedy"),
        ("num_beams", "answers are greedy"),
        ("stop", "answers end at the model's own stop tokens"),
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
