# SPDX-License-Identifier: Apache-2.0
"""polygraphy run GRAPH.onnx --fastmmoe: our operators in ONNX Runtime. An entry point leads Polygraphy here."""

from __future__ import annotations

from functools import partial
from typing import Any

from polygraphy.backend.onnxrt import OnnxrtRunner
from polygraphy.tools.args import ModelArgs
from polygraphy.tools.args.base import BaseRunnerArgs
from polygraphy.tools.script import make_invocable


class FastmmoeRunner(OnnxrtRunner):  # type: ignore[misc]
    """Polygraphy's runner of ONNX Runtime, whose session knows our operators.

    Args:
        path: the graph's file; its weights lie beside it.
    """

    def __init__(self, path: str, name: str | None = None) -> None:
        super().__init__(partial(_session, path), name=name or "fastmmoe")


class FastmmoeRunnerArgs(BaseRunnerArgs):  # type: ignore[misc]
    """FastMMoE: ONNX Runtime with the operators of fastmmoe. Depends on: ModelArgs"""

    def get_name_opt_impl(self) -> tuple[str, str]:
        """What the runner is called, and its option without dashes."""
        return "ONNX Runtime with FastMMoE's operators", "fastmmoe"

    def add_to_script_impl(self, script: Any) -> None:
        """Have the script that Polygraphy runs make the runner."""
        script.add_import(imports=["FastmmoeRunner"], frm=__name__)
        script.add_runner(make_invocable("FastmmoeRunner", self.arg_groups[ModelArgs].path))


def arg_groups() -> list[BaseRunnerArgs]:
    """What the entry point `polygraphy.run.plugins` is asked for."""
    return [FastmmoeRunnerArgs()]


def _session(path: str) -> Any:
    from fastmmoe.runtime.backends.onnxruntime import open_graph

    return open_graph(path)
