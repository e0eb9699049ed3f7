# SPDX-License-Identifier: Apache-2.0
"""Plans of exports: all that needs no torch is checked here, so that most mistakes are told at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fastmmoe.exporter.checkpoint.reader import Checkpoint
from fastmmoe.exporter.config import DEMO, ExportConfig, checkpoint_directory
from fastmmoe.exporter.output_directory import check_output
from fastmmoe.exporter.pruning.settings import check_options
from fastmmoe.exporter.targets import (
    check_groups,
    choose_cache_dtype,
    choose_device,
    choose_dtype,
    choose_layout,
    choose_linears,
    choose_packing,
    with_mix,
)
from fastmmoe.runtime.backends.tensorrt.api import load_module
from fastmmoe.runtime.bundle.plugin_library import find_plugin
from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.files import real_path
from fastmmoe.runtime.machines.devices import Device
from fastmmoe.runtime.machines.targets import Target, find_target, unknown_target
from fastmmoe.runtime.types import Say

if TYPE_CHECKING:
    from fastmmoe.exporter.ops.linear.packing import LinearPackings
    from fastmmoe.exporter.ops.quantise import Packing
    from fastmmoe.runtime.bundle.manifest import PluginInfo


@dataclass(frozen=True)
class ExportPlan:
    """An export that may begin.

    Attributes:
        name: the model's.
        out: the directory as the user says it.
        device: the one whose memory the weights must fit; None = the target is for any.
        dtype, cache_dtype, packing, linears, layout: chosen; cache_dtype is a value of `DTYPES`.
        plugin: the target's TensorRT plugin library; None = the target has none.
    """

    config: ExportConfig
    checkpoint: Checkpoint
    name: str
    out: Path
    target: Target
    device: Device | None
    dtype: str
    cache_dtype: str
    packing: Packing | None
    linears: LinearPackings
    layout: str
    plugin: tuple[Path, PluginInfo] | None


def plan_export(config: ExportConfig, say: Say = print) -> ExportPlan:
    """Check an export's options, output directory, plugin and checkpoint; nothing is written, torch is not imported.

    Args:
        say: is called with a line where something that a killed process left was removed.
    Raises:
        InvalidRequest, UnsupportedModel: see `ExportConfig`, `check_output`, `Checkpoint`.
        BundleMismatch, EngineBuildFailed: the target's plugin or TensorRT is not there or does not fit.
    """
    target = find_target(config.target)
    if target is None:
        raise InvalidRequest(f"--target {unknown_target(config.target)}")
    device = choose_device(target, config.memory)
    chosen = with_mix(target, config)
    check_groups(config, chosen)
    dtype = choose_dtype(target, chosen.dtype)
    cache_dtype = choose_cache_dtype(target, dtype, config.kv_cache_dtype)
    packing, linears = choose_packing(target, chosen), choose_linears(target, chosen)
    layout = choose_layout(target, chosen, dtype)
    if config.atol is not None and not config.atol > 0:
        raise InvalidRequest(f"--atol {config.atol}: expected a positive number")
    check_options(config.policy)
    directory = checkpoint_directory(config.model)
    name = DEMO if config.model == DEMO else real_path(directory).name
    out = Path(f"{name}-{target.name}") if config.out is None else config.out
    check_output(out, directory, overwrite=config.overwrite, resume=config.resume, say=say)
    checkpoint = Checkpoint(directory)
    plugin = _find_plugin(target)
    return ExportPlan(
        config, checkpoint, name, out, target, device, dtype, cache_dtype, packing, linears, layout, plugin
    )


def _find_plugin(target: Target) -> tuple[Path, PluginInfo] | None:
    """The target's plugin library; what will be needed is looked for now, not after the long trace."""
    if target.tensorrt is None:
        return None
    if target.tensorrt.is_ahead_of_time:
        load_module(target.tensorrt.module, target.tensorrt.install)
    return find_plugin(target, target.tensorrt)
