# SPDX-License-Identifier: Apache-2.0
"""How a manifest says that weights are stored."""

from __future__ import annotations

import msgspec
import pytest

from fastmmoe.runtime.bundle.storage import ExpertTensor, LinearInfo, LinearsInfo


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("float16", 2), ("bfloat16", 2), ("int8", 1)])
def test_bytes_of_an_input(dtype: str, size: int) -> None:
    tensor = msgspec.convert({"dtype": dtype, "shape": (3, 5, 7), "offset": 8}, ExpertTensor)
    assert tensor.bytes == 105 * size


def test_formats_of_linear_layers() -> None:
    int8 = {"weight_format": "int8", "group_size": 128, "zero_points": False}
    found = msgspec.convert(dict.fromkeys(("dense", "head", "vision"), int8), LinearsInfo)
    assert found.head == LinearInfo(weight_format="int8", group_size=128, zero_points=False)
    with pytest.raises(msgspec.ValidationError, match="fp8"):
        msgspec.convert(int8 | {"weight_format": "fp8"}, LinearInfo)
