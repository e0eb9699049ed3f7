# SPDX-License-Identifier: Apache-2.0
"""A toy bundle, processors of the golden checkpoints and the messages they are given."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from fastmmoe.runtime.bundle.manifest import write_manifest
from tests.support.manifests import FILES, toy_manifest
from tests.support.processors import MakeMessages, MakeProcessor, golden_messages, processor_of


@pytest.fixture
def toy_bundle(tmp_path: Path) -> Path:
    """A directory that is a bundle by its manifest; its graphs are none."""
    directory = tmp_path / "toy"
    directory.mkdir()
    for name in FILES:
        (directory / name).write_text(name)
    write_manifest(directory, toy_manifest("deepseek_vl2"))
    return directory


@pytest.fixture(scope="session")
def processor(checkpoint: Callable[[str], Path]) -> MakeProcessor:
    """Function checkpoint -> its processor."""
    return lambda name: processor_of(checkpoint(name))


@pytest.fixture(scope="session")
def messages(golden: Path) -> MakeMessages:
    """Function (names of golden pictures, text, system=None) -> `golden_messages`."""
    return partial(golden_messages, golden)
