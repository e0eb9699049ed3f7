# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime as the check needs it: it takes the weights where they are, in the mapped files, and copies none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastmmoe.runtime.backends.device_memory import ort_value
from fastmmoe.runtime.backends.native import EXACT_ENTRY
from fastmmoe.runtime.backends.onnxruntime import OnnxRuntime
from fastmmoe.runtime.backends.settings import Settings
from fastmmoe.runtime.bundle.manifest import Manifest
from fastmmoe.runtime.types import Array


class MappedOnnxRuntime(OnnxRuntime):
    """One graph of a bundle; see `OnnxRuntime`.

    Without prepacking and folding, which would hold a second copy of all dense weights in memory.

    Args:
        experts: values of the inputs that are experts' weights; uint16 are the bits of bfloat16.
        is_exact: operators round nothing that they multiply; False = they do as they run.
    """

    def __init__(
        self,
        directory: Path,
        manifest: Manifest,
        graph: str,
        *,
        experts: Mapping[str, Array] | None = None,
        is_exact: bool = True,
    ) -> None:
        # Where experts are inputs, weights are cast (widened.py).
        self._is_exact = is_exact
        self._casts_weights = bool(manifest.experts.inputs)
        super().__init__(directory, manifest, Settings(), graphs=(graph,))
        self._constants = {name: ort_value(values) for name, values in (experts or {}).items()}

    def _register(self, options: Any) -> None:
        options.add_session_config_entry(EXACT_ENTRY, str(int(self._is_exact)))
        super()._register(options)

    def _session_options(self, graph: str) -> Any:
        options = super()._session_options(graph)
        options.add_session_config_entry("session.disable_prepacking", "1")
        if self._casts_weights:
            # Or each would be computed once and kept.
            options.graph_optimization_level = type(options.graph_optimization_level).ORT_DISABLE_ALL
        return options
