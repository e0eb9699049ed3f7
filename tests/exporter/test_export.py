# SPDX-License-Identifier: Apache-2.0
"""What an export says before and after its steps, and what a failing disk does to each of them; nothing is traced."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from fastmmoe.exporter import cli, export
from fastmmoe.exporter.config import ExportConfig
from fastmmoe.exporter.ops import ATTENTION, DOMAIN
from fastmmoe.exporter.plan import plan_export
from fastmmoe.runtime.cli import output
from fastmmoe.runtime.files import WriteFailed
from tests.support.attention_cases import SMALL


@pytest.fixture
def small_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every graph is one addition of 1,000 weights, and no check runs."""

    def trace(_: object, __: object, ___: object, ____: object, *, name: str, opset: int) -> ir.Model:
        weight = ir.tensor(np.ones(1000, np.float32), name="weight")
        x = ir.val("x", ir.DataType.FLOAT, ir.Shape([1000]))
        constant = ir.val("weight", ir.DataType.FLOAT, ir.Shape([1000]), const_value=weight)
        node = ir.node("Add", [x, constant])
        graph = ir.Graph([x], node.outputs, nodes=[node], initializers=[constant], opset_imports={"": opset}, name=name)
        return ir.Model(graph, ir_version=11)

    monkeypatch.setattr(export, "trace", trace)
    monkeypatch.setattr(export, "templates_of", lambda steps, opset: [])
    monkeypatch.setattr(export, "check_bundle", lambda *_: [])
    monkeypatch.setattr(export, "_has_operators", lambda graph: graph.graph.name == "language_model")


def run(out: Path, **options: Any) -> list[str]:
    lines: list[str] = []
    export.run_export(plan_export(ExportConfig(out=out, **options)), lines.append)
    return lines


@pytest.mark.usefixtures("small_graphs")
def test_each_step_is_announced(tmp_path: Path) -> None:
    lines = run(tmp_path / "out")
    starts = [
        line.partition(" (")[0].partition(":")[0] for line in lines if line.startswith(("trac", "writing ", "wrote "))
    ]
    assert starts[:-1] == [
        "tracing each kind of step once ...",
        "traced 0 kinds of steps",
        "writing vision ...",
        "wrote vision",
        "writing embedding ...",
        "wrote embedding",
        "writing language_model",
        "wrote language_model",
    ]
    assert "writing language_model (8 layers) ..." in lines
    assert lines[-1].startswith(f"wrote {tmp_path / 'out'}: 9 files")


NUMBERS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
STEPS: dict[str, tuple[Callable[[pytest.MonkeyPatch, Callable[..., object]], object], str]] = {
    "weights": (lambda patch, fail: patch.setattr(ir, "save", fail), "vision.onnx with vision.data"),
    "portable graph": (lambda patch, fail: patch.setattr(export, "_write_portable", fail), "language_model.portable"),
    "tokenizer": (lambda patch, fail: patch.setattr(shutil, "copyfile", fail), "tokenizer.json"),
    "manifest": (lambda patch, fail: patch.setattr(export, "write_manifest", fail), "manifest.json"),
    "sync": (lambda patch, fail: patch.setattr(os, "fsync", fail), ""),
}


@pytest.mark.usefixtures("small_graphs")
@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("step", STEPS)
def test_a_disk_that_fails(step: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    spoil, file = STEPS[step]
    spoil(monkeypatch, fail)
    with pytest.raises(WriteFailed) as failure:
        run(tmp_path / "out")
    line = str(failure.value)
    assert line.startswith(f"{tmp_path / 'out' / file}") and os.strerror(number) in line and "\n" not in line, line
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("small_graphs")
@pytest.mark.parametrize("line", ["wrote {out}: ", "run it"])
def test_an_interrupt_after_the_bundle_says_that_it_was_written(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(text: str, **_: object) -> None:
        if text.startswith(line.format(out=tmp_path / "out")):
            raise KeyboardInterrupt

    # In the command's own file alone.
    monkeypatch.setattr(output, "print", interrupt, raising=False)
    assert cli.main(["demo", str(tmp_path / "out")]) == 130
    assert capsys.readouterr().err == f"fastmmoe-export: interrupted; {tmp_path / 'out'} was written\n"
    assert (tmp_path / "out" / "manifest.json").is_file()


@pytest.mark.usefixtures("small_graphs")
def test_a_name_that_looks_like_an_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["demo", "--", "-my out"]) == 0
    assert "fastmmoe run './-my out' --image" in capsys.readouterr().out


@pytest.mark.usefixtures("small_graphs")
def test_a_short_write_of_numpy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = [10**9]

    def cut(*_: object, **__: object) -> None:
        free.append(100_000)
        raise OSError("10240 requested and 7168 written")

    disk = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk._replace(free=free[-1]))
    plan = plan_export(ExportConfig(out=tmp_path / "out"))
    monkeypatch.setattr(ir, "save", cut)
    words = (
        r"vision\.data: cannot be written: No space left on device: it takes [\d.]+ MB, [\d.]+ MB more than there is"
    )
    with pytest.raises(WriteFailed, match=words):
        export.run_export(plan, lambda _: None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["dsvl2-mha", "internvl-qwen3moe"])
def test_a_checkpoint_without_tokenizer_is_told_of(
    name: str, own_checkpoint: Callable[[str], Path], tmp_path: Path, small_graphs: None
) -> None:
    directory = own_checkpoint(name)
    lines = run(tmp_path / "with", model=str(directory))
    assert not [line for line in lines if "tokenizer.json" in line]
    (directory / "tokenizer.json").unlink()
    lines = run(tmp_path / "without", model=str(directory))
    assert len([line for line in lines if line.startswith("no tokenizer.json: this bundle takes ready-made")]) == 1


def test_nodes_of_other_attributes_call_other_functions(tmp_path: Path) -> None:
    """Three kinds of attention, the first of them twice: ONNX Runtime does not tell overloads apart."""
    kinds = [case.attributes for case in SMALL if case.name in ("prefill", "window", "latent")]
    nodes = []
    for i, attributes in enumerate((kinds[0], kinds[1], kinds[0], kinds[2])):
        inputs = [ir.val(f"{t.name}_{i}") for t in ATTENTION.inputs_for(attributes)]
        outputs = [ir.val(f"{t.name}_{i}") for t in ATTENTION.outputs_for(attributes)]
        nodes.append(ir.node(ATTENTION.name, inputs, attributes=attributes, outputs=outputs, domain=DOMAIN))
    given = [value for node in nodes for value in node.inputs if value is not None]
    graph = ir.Graph(given, nodes[-1].outputs, nodes=nodes, opset_imports={"": 23, DOMAIN: 1}, name="graph")
    ir.save(ir.Model(graph, ir_version=11), tmp_path / "language_model.onnx")
    export._write_portable(tmp_path)
    portable = ir.load(tmp_path / "language_model.portable.onnx")
    called = [node.op_type for node in portable.graph]
    assert called == ["FmmAttention", "FmmAttention_2", "FmmAttention", "FmmAttention_3"]
    functions = {function.name: function for function in portable.functions.values()}
    assert list(functions) == ["FmmAttention", "FmmAttention_2", "FmmAttention_3"]
    for node in portable.graph:
        function = functions[node.op_type]
        assert (len(function.inputs), len(function.outputs)) == (len(node.inputs), len(node.outputs))
