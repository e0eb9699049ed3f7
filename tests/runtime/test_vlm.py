# SPDX-License-Identifier: Apache-2.0
"""Arguments of a bundle's object that are not what they should be, and what it makes of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmmoe.runtime.errors import BundleMismatch, InvalidRequest
from fastmmoe.runtime.vlm import VLM


@pytest.mark.parametrize("bundle", [123, None, b"demo", ["demo"], True])
def test_what_is_no_directory_of_a_bundle(bundle: Any) -> None:
    with pytest.raises(InvalidRequest, match=f"^bundle is of type {type(bundle).__name__}: expected a str or Path"):
        VLM(bundle)


@pytest.mark.parametrize("name", ["portable", "verify"])
@pytest.mark.parametrize("value", ["yes", "no", "", 0, 1, None, 0.0])
def test_what_is_neither_true_nor_false(name: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=f"^{name} is of type {type(value).__name__}: expected True or False$"):
        VLM(tmp_path, **{name: value})


def test_truth_values_of_numpy_count_as_pythons(tmp_path: Path) -> None:
    with pytest.raises(BundleMismatch):
        VLM(tmp_path, portable=np.False_, verify=np.True_)  # type: ignore[arg-type]


@pytest.mark.parametrize("conversations", [np.array([]), np.array(3), b"a", "a", {}, 3, None])
def test_what_is_no_list_of_conversations(conversations: Any) -> None:
    expected = f"^conversations is of type {type(conversations).__name__}: expected a list of messages"
    with pytest.raises(InvalidRequest, match=expected):
        object.__new__(VLM).generate_batch(conversations)


@pytest.mark.parametrize("conversations", [[], (), iter([])])
def test_no_conversations(conversations: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"^no conversations: expected at least one$"):
        object.__new__(VLM).generate_batch(conversations)
