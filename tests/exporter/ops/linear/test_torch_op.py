# SPDX-License-Identifier: Apache-2.0
"""FmmLinear's torch op against the NumPy reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fastmmoe.exporter.ops import LINEAR, linear_reference
from fastmmoe.exporter.ops.linear import torch_op as _linear  # noqa: F401  (registers the operator)
from tests.support.linear_cases import linear_case
from tests.support.operators import assert_close


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("has_bias", [False, True])
def test_same_as_the_reference(has_bias: bool, dtype: Any) -> None:
    inputs, attributes = linear_case(None, "odd", has_bias=has_bias, weight_dtype=dtype, dtype=dtype)
    x, *weights = (torch.from_numpy(values) for values in inputs.values())
    y = torch.ops.fastmmoe.linear(x, weights, LINEAR.encode(attributes))
    assert_close(y.numpy(), linear_reference(inputs, attributes))
    on_meta = [w.to("meta") for w in weights]
    assert torch.ops.fastmmoe.linear(x.to("meta"), on_meta, LINEAR.encode(attributes)).shape == y.shape


def test_inputs_outside_of_the_contract() -> None:
    inputs, attributes = linear_case(None, "odd")
    x, weight, bias = (torch.from_numpy(values) for values in inputs.values())
    with pytest.raises(ValueError, match=r"^FmmLinear: bias is \[34\], expected \[N\] = \[35\]$"):
        torch.ops.fastmmoe.linear(x, [weight, bias[1:]], LINEAR.encode(attributes))
