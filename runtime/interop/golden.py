# SPDX-License-Identifier: Apache-2.0
"""Golden files of a bundle in Polygraphy's own JSON: what its graphs were given in a request, and what they gave."""

from __future__ import annotations

import importlib
import shlex
import sys
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastmmoe.runtime.backends.load import load_backend
from fastmmoe.runtime.backends.settings import CPU, Settings
from fastmmoe.runtime.bundle import signatures
from fastmmoe.runtime.bundle.manifest import GRAPHS, Manifest, graph_file
from fastmmoe.runtime.bundle.verification import open_bundle
from fastmmoe.runtime.files import check_beside, check_replaceable, real_path, replacing
from fastmmoe.runtime.generation import Run
from fastmmoe.runtime.interop.legal_inputs import check_plain, request_inputs
from fastmmoe.runtime.interop.recording import Recorded, Recording
from fastmmoe.runtime.request.options import RequestOptions

DATA_LOADER = "data_loader.py"
TOKENS = 2
"""A prompt and a decoding step."""
TOLERANCE, PORTABLE_TOLERANCE = "1e-5", "5e-5"
"""Of a graph against itself, and of one whose operators sum in another order."""
_STOCK, _OURS = "--onnxrt", "--fastmmoe"

_LOADER = '''# SPDX-License-Identifier: Apache-2.0
"""polygraphy run GRAPH.onnx --data-loader-script {file}:GRAPH: random inputs that the graphs of this bundle take."""

from functools import partial
from pathlib import Path

from fastmmoe.runtime.interop.legal_inputs import legal_inputs

BUNDLE = Path({bundle!r})
vision, embedding, language_model = (partial(legal_inputs, BUNDLE, graph) for graph in {graphs!r})
load_data = language_model
'''


@dataclass(frozen=True)
class Golden:
    """What was written for one graph.

    Attributes:
        calls: how many there are in each file.
        bytes: of both files.
        commands: each compares a file of the graph with them.
    """

    graph: str
    inputs: Path
    outputs: Path
    calls: int
    bytes: int
    commands: tuple[str, ...]


def write_golden(
    bundle: Path, out: Path, options: RequestOptions, *, seed: int = 0, verify: bool = True
) -> list[Golden]:
    """Run one request with random pixels and words, and write what went into each graph and came out of it.

    Of the language model only logits, tokens and surviving rows are outputs; caches are cut to the rows in use. Needs
    the package polygraphy.

    Args:
        out: directory; its files are replaced.
    Raises:
        InvalidRequest: see `check_plain`, `check_beside` and `Run`.
        BackendMissing, BundleMismatch: see `VLM`.
        WriteFailed: the disk is full, or the like.
    """
    opened = open_bundle(bundle, verify=verify)
    manifest = opened.manifest
    check_plain(bundle, manifest)
    check_beside(bundle, out)
    out.mkdir(parents=True, exist_ok=True)
    check_replaceable(out / DATA_LOADER)
    recording = Recording(load_backend(opened, Settings(provider=CPU)), manifest)
    list(Run(manifest, recording, [request_inputs(manifest.processor, seed)], options, has_logits=True).tokens())
    loader = _LOADER.format(file=DATA_LOADER, bundle=str(real_path(bundle)), graphs=GRAPHS)
    _write(out / DATA_LOADER, loader)
    with _without_torch():
        return [_golden(bundle, manifest, graph, recording.calls[graph], out) for graph in GRAPHS]


@contextmanager
def _without_torch() -> Iterator[None]:
    """Have Polygraphy's JSON not import torch where that is installed: arrays are NumPy's here.

    The import takes longer than all else, and an interrupt that lands in it crashes the process.
    """
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["torch"]


def _golden(bundle: Path, manifest: Manifest, graph: str, calls: Sequence[Recorded], out: Path) -> Golden:
    order = [tensor.name for tensor in signatures.signatures(manifest)[graph].inputs]
    inputs, outputs = out / f"{graph}.inputs.json", out / f"{graph}.outputs.json"
    _write(inputs, _inputs_json(calls, order))
    _write(outputs, _outputs_json(calls))
    runner = _OURS if graph in manifest.operator_graphs else _STOCK
    commands = [_command(bundle / graph_file(graph), runner, inputs, outputs, TOLERANCE)]
    if graph == "language_model" and manifest.portable and not manifest.rounds_logits:
        portable = bundle / graph_file(graph, portable=True)
        commands.append(_command(portable, _STOCK, inputs, outputs, PORTABLE_TOLERANCE))
    size = inputs.stat().st_size + outputs.stat().st_size
    return Golden(graph, inputs, outputs, len(calls), size, tuple(commands))


def _write(path: Path, text: str) -> None:
    data = text.encode()
    with replacing(path, len(data)) as file:
        file.write(data)


def _command(graph: Path, runner: str, inputs: Path, outputs: Path, tolerance: str) -> str:
    words = ["polygraphy", "run", str(graph), runner, "--load-inputs", str(inputs), "--load-outputs", str(outputs)]
    return shlex.join([*words, "--atol", tolerance, "--rtol", "1e-5"])


def _inputs_json(calls: Sequence[Recorded], order: Sequence[str]) -> str:
    polygraphy: Any = importlib.import_module("polygraphy.json")
    text: str = polygraphy.to_json([OrderedDict((name, call.inputs[name]) for name in order) for call in calls])
    return text


def _outputs_json(calls: Sequence[Recorded]) -> str:
    comparator: Any = importlib.import_module("polygraphy.comparator")
    results = [comparator.IterationResult(call.outputs, runtime=0.0, runner_name="fastmmoe") for call in calls]
    text: str = comparator.RunResults([("fastmmoe", results)]).to_json()
    return text
