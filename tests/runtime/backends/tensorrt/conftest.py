# SPDX-License-Identifier: Apache-2.0
"""The device's double for tests of what runs on it."""

from __future__ import annotations

import pytest

from tests.support.double import Double
from tests.support.toy_engines import Gpu, gpu_of


@pytest.fixture
def gpu(double: Double) -> Gpu:
    """A fresh device."""
    return gpu_of(double.modules())
