# SPDX-License-Identifier: Apache-2.0
"""Bundles for the CPU as bundles of engines: the same graphs in float32, for the double, which computes in float32."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest

from fastmmoe.exporter.graph.expert_inputs import make_expert_inputs
from fastmmoe.runtime.backends.tensorrt.build import BuildOptions, build_engines
from fastmmoe.runtime.bundle.manifest import MANIFEST, PLUGIN, file_entry, graph_file, read_manifest, write_manifest
from fastmmoe.runtime.bundle.plugin_library import find_plugin
from fastmmoe.runtime.machines.targets import RTX, TARGETS
from tests.support.double import Double

MOST_TILES, MOST_SEQUENCES = 24, 4


def write_engine_bundle(source: Path, out: Path, double: Double) -> Path:
    """Copy a bundle, make the experts' weights inputs, and have the double build engines that take long requests."""
    library, plugin = find_plugin(TARGETS["rtx"], RTX)
    shutil.copytree(source, out)
    (out / graph_file("language_model", portable=True)).unlink(missing_ok=True)
    shutil.copyfile(library, out / PLUGIN)
    inputs = make_expert_inputs(out / graph_file("language_model"))
    manifest = read_manifest(source)
    files = {path.name: file_entry(path) for path in sorted(out.iterdir()) if path.name != MANIFEST}
    changed = msgspec.structs.replace(
        manifest,
        target="rtx",
        plugin=plugin,
        portable=False,
        experts=msgspec.structs.replace(manifest.experts, inputs=inputs),
        files=files,
    )
    write_manifest(out, changed)
    longest = manifest.processor.max_position_embeddings
    limits = BuildOptions(
        max_tokens=longest, max_visual=longest, max_cache=longest, max_tiles=MOST_TILES, max_batch=MOST_SEQUENCES
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.environ", double.environment())
        build_engines(out, limits, say=lambda _: None)
    return out
