# SPDX-License-Identifier: Apache-2.0
"""A toy bundle, processors of the golden checkpoints and the messages they are given."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.support.manifests import write_toy_bundle
from tests.support.processors import MakeMessages, MakeProcessor, golden_messages, processor_of


@pytest.fixture
def toy_bundle(tmp_path: Path) -> Path:
    """See `write_toy_bundle`."""
    return write_toy_bundle(tmp_path / "toy")


@pytest.fixture(scope="session")
def processor(checkpoint: Callable[[str], Path]) -> MakeProcessor:
    """Function checkpoint -> its processor."""
    return lambda name: processor_of(checkpoint(name))


@pytest.fixture(scope="session")
def messages(golden: Path) -> MakeMessages:
    """Function (names of golden pictures, text, system=None) -> `golden_messages`."""
    return partial(golden_messages, golden)
