# SPDX-License-Identifier: Apache-2.0
"""Exports whose graphs are weights alone, and whose check passes at once: what is tested is how they are written.

As a program: `untraced_export.py END AT ARGUMENTS...` is fastmmoe-export with these arguments; at the AT-th parameter
END happens: kill, wait (for a signal), full (the disk), or nothing.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch

from fastmmoe.exporter import export
from fastmmoe.exporter.cli import main
from fastmmoe.exporter.graph.weights import parameter_tensor
from fastmmoe.exporter.weight_stream import WeightStream

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload([__name__])
TYPES = {torch.float32: ir.DataType.FLOAT, torch.float16: ir.DataType.FLOAT16, torch.bfloat16: ir.DataType.BFLOAT16}


def trace(
    module: torch.nn.Module, program: Any, inputs: Any, load: Callable[[str], torch.Tensor], *, name: str, opset: int
) -> ir.Model:
    """A graph of the module's parameters; matrices that end in proj.weight are transposed."""
    values = []
    for parameter, p in module.named_parameters():
        tensor = parameter_tensor(parameter, TYPES[p.dtype], p.shape, load)
        if parameter.endswith("proj.weight"):
            tensor = tensor.permuted((1, 0), parameter)
        values.append(ir.val(parameter, tensor.dtype, tensor.shape, const_value=tensor))
    x = ir.val("x", ir.DataType.FLOAT, ir.Shape([4]))
    node = ir.node("Identity", [x])
    graph = ir.Graph([x], node.outputs, nodes=[node], initializers=values, opset_imports={"": opset}, name=name)
    return ir.Model(graph, ir_version=11)


def run(arguments: list[str], end: str = "nothing", at: int = 0) -> int:
    """Exit code of such an export, in this process."""
    before = export.trace, export.templates_of, export.check_bundle, WeightStream.write
    export.trace, export.templates_of, export.check_bundle = trace, lambda *_, **__: [], lambda *_: []
    WeightStream.write = _ending(end, at)  # type: ignore[method-assign]
    try:
        return main(arguments)
    finally:
        export.trace, export.templates_of, export.check_bundle, WeightStream.write = before  # type: ignore[method-assign]


def run_apart(arguments: list[str], end: str, at: int) -> subprocess.CompletedProcess[str]:
    """The same in a process of its own, forked from one that has imported everything, which takes seconds."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("out", "err")]
        process = _SERVER.Process(target=_run_into, args=(files, arguments, end, at))
        process.start()
        process.join()
        assert process.exitcode is not None
        return subprocess.CompletedProcess(arguments, process.exitcode, *(file.read_text("utf-8") for file in files))


def _run_into(files: list[Path], arguments: list[str], end: str, at: int) -> None:
    for stream, file in enumerate(files, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), stream)
    sys.exit(run(arguments, end, at))


def _ending(end: str, at: int) -> Any:
    write, calls = WeightStream.write, iter(range(1 << 30))

    def ending(stream: WeightStream, name: str, order: Any, target: int, where: int, report: Any) -> None:
        if next(calls) == at and end != "nothing":
            os.pwrite(target, b"half of it", where)
            print("now", flush=True)
            if end == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if end == "full":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            time.sleep(60)
        write(stream, name, order, target, where, report)

    return ending


if __name__ == "__main__":
    sys.exit(run(sys.argv[3:], sys.argv[1], int(sys.argv[2])))
