# SPDX-License-Identifier: Apache-2.0
"""How the outputs of an implementation of FmmAttention are compared with the exact ones."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from fastmmoe.exporter.ops import ATTENTION, attention_reference
from fastmmoe.runtime.types import Array
from tests.support.attention_cases import Case

TOLERANCES = {"float32": 3e-6, "float16": 2e-3, "bfloat16": 1.6e-2}
"""Of what is computed, by the coarsest type among rows and caches, as a share of the greatest absolute value. In
float32 four instruction sets were 1.4e-6 to 2.02e-6 off in one case ("decode a long cache": sums over 1,501 keys)."""


def check_outputs(case: Case, inputs: dict[str, Array], outputs: list[Array]) -> None:
    """Compare with the reference in float64: rows that were written to caches bit by bit, the rest by dtype.

    Rows of the caches that are in use by no sequence of the call must be as they were; those not in use at all are not
    looked at.
    """
    expected = attention_reference(case.attributes, inputs, np.float64)
    coarsest = max((inputs["query"].dtype.name, inputs["past_key"].dtype.name), key=TOLERANCES.__getitem__)
    names = [t.name for t in ATTENTION.outputs_for(case.attributes)]
    assert len(outputs) == len(names)
    used = _used(case)
    for name, y, exact in zip(names, outputs, expected, strict=True):
        assert y.shape == exact.shape, name
        if name.startswith("present"):
            rows = np.moveaxis(y, 2, 1) if y.ndim == 4 else y
            exact_rows = np.moveaxis(exact, 2, 1) if y.ndim == 4 else exact
            assert y.dtype == exact.dtype, name
            np.testing.assert_array_equal(rows[used], exact_rows[used], err_msg=name)
        else:
            scale = np.abs(exact).max()
            difference = np.abs(y.astype(np.float64) - exact).max() / scale
            assert difference <= TOLERANCES[coarsest], f"{name}: {difference:.2e} of {scale:.3g}"


def _used(case: Case) -> Array:
    """Which rows of the caches are in use after the call, [B, C]."""
    after = np.array(case.lengths)
    for b, rows in case.call:
        after[b] += rows
    return np.arange(case.capacity) < after[:, None]


DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
