# SPDX-License-Identifier: Apache-2.0
"""The configuration of an export: what it is by default, and where a command's checkpoint is."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from fastmmoe.exporter.config import DEMO, ExportConfig, checkpoint_directory
from fastmmoe.exporter.pruning.settings import PolicyOptions
from fastmmoe.exporter.targets import choose_packing
from fastmmoe.runtime.machines.targets import TARGETS


def test_a_name_is_the_built_in_checkpoint_or_a_directory() -> None:
    assert (checkpoint_directory(DEMO) / "config.json").is_file()
    assert checkpoint_directory(DEMO).is_absolute()
    assert checkpoint_directory("some/model") == Path("some/model")
    # A directory that is called so is given by its path.
    assert checkpoint_directory(f"./{DEMO}") == Path(DEMO) != checkpoint_directory(DEMO)


def test_defaults_are_an_export_of_the_demo_for_this_machine() -> None:
    config = ExportConfig()
    assert (config.model, config.out, config.target, config.overwrite) == (DEMO, None, "cpu", False)
    assert config.policy == PolicyOptions()
    assert choose_packing(TARGETS[config.target], config) is None


def test_a_configuration_stays_what_it_is() -> None:
    config = ExportConfig()
    with pytest.raises(FrozenInstanceError):
        config.target = "rtx"  # type: ignore[misc]
