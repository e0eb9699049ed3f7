# SPDX-License-Identifier: Apache-2.0
"""The benchmark of language models: what programs are fed and answer, the tables, and the files that peers read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from fastmmoe.runtime.bundle import graph_io
from tests.support.echo import Echo
from tests.support.manifests import toy_manifest
from tests.support.scripts import SCRIPTS, script

benchmark, programs, turns = (script(n) for n in ("benchmark_llm", "benchmark_tools.programs", "benchmark_tools.turns"))
TOOLS = SCRIPTS / "benchmark_tools"


def worker(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A worker of benchmark_tools, which finds llm_worker beside it."""
    monkeypatch.syspath_prepend(str(TOOLS))
    return script(f"benchmark_tools.{name}")


def test_prefills_are_new_and_steps_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    manifest, ours = toy_manifest("deepseek_vl2"), worker("bundle_worker", monkeypatch)
    backend = Echo(manifest.language_model, manifest.policy)
    monkeypatch.setattr(ours, "read_manifest", lambda path: None)
    monkeypatch.setattr(ours, "OnnxRuntime", lambda *_, **__: backend)
    prefill, begin = ours.load(Path("toy"), 1)
    prefill(7)()
    steps = begin()
    steps()()
    steps()()
    prefill(7)()
    given = [len(call[graph_io.POSITION_IDS]) for call in backend.calls]
    assert given == [7, ours.BEGINNING, 1, 1, 7]
    past = [int(call["past_lengths.0"][0]) for call in backend.calls]
    assert past == [0, 0, ours.BEGINNING, ours.BEGINNING + 1, 0]


COUNTING = """
import os, sys
sys.path.insert(0, {tools!r})
import llm_worker

llm_worker.LONGEST = 3
begun = []

def begin():
    begun.append(0)
    return lambda: lambda: os.write(1, b"noise of a library\\n")

llm_worker.serve(lambda: (lambda rows: lambda: os.write(1, b"%d rows\\n" % rows), begin))
os.write(2, b"%d sequences" % len(begun))
"""


def test_workers_answer_every_line_and_begin_anew() -> None:
    """What a library prints is no answer; after the most steps another sequence begins."""
    code = COUNTING.format(tools=str(TOOLS))
    ran = subprocess.run(
        [sys.executable, "-c", code], input="64 2\n1 3\n1 1\n", capture_output=True, text=True, check=True
    )
    ready, prefills, steps, another = map(json.loads, ran.stdout.splitlines())
    assert ready == {"ready": True}
    assert [len(found["seconds"]) for found in (prefills, steps, another)] == [2, 3, 1]
    assert min(prefills["seconds"]) > 0 <= prefills["cpu_seconds"]
    assert ran.stderr.startswith("64 rows\n64 rows\n") and ran.stderr.endswith("2 sequences")


TELLING = """
import json, os
names = ("OMP_WAIT_POLICY", "PYTHONPATH", "HOME")
print(json.dumps({}))
input()
print(json.dumps({name: os.environ.get(name) for name in names}))
"""


def test_a_program_has_its_own_packages_and_tells_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    monkeypatch.setenv("PYTHONPATH", "somewhere")
    told = tmp_path / "told.py"
    told.write_text(TELLING)
    program = programs.Program(sys.executable, str(told), "word")
    expected = {"OMP_WAIT_POLICY": "passive", "PYTHONPATH": "somewhere", "HOME": os.environ.get("HOME")}
    assert program.ask(64, 1) == expected
    with pytest.raises(programs.BenchmarkError, match=r"told\.py word ended; its message is above"):
        program.ask(64, 1)
    program.close()
    other = tmp_path / "python"
    other.symlink_to(sys.executable)
    program = programs.Program(str(other), str(told))
    assert program.ask(64, 1)["PYTHONPATH"] is None
    program.close()


def samples(*seconds: float, used: float) -> Any:
    return turns.Samples(clean=list(seconds), every=[9.0], used=[used])


def test_rates_are_medians_and_ratios_are_by_the_best_peer() -> None:
    found = {
        1: {"a": samples(0.1, 0.2, 0.3, used=0.4), "b": samples(0.4, used=1.0), "c": samples(0.1, used=1.0)},
        64: {"a": samples(1.0, used=2.0), "b": samples(0.5, used=1.0), "c": samples(2.0, used=1.0)},
    }
    rates, ratios = benchmark.report(found, ["a"], ["b", "c"])
    assert rates.splitlines()[0] == "|  | decode | prefill 64 |"
    assert rates.splitlines()[2] == "| a | 5 (2) | 64 (32) |"
    assert ratios.splitlines()[2:] == ["| a | 0.50 | 0.50 |"]
    assert benchmark.report(found, ["a"], [])[1] == ""


def test_turns_take_programs_as_they_are() -> None:
    class Program:
        def times(self, size: int, count: int) -> tuple[list[float], float]:
            return [size / 100] * count, count * size / 50

    found = turns.by_turns({"one": Program()}, 64, 2, 3, patience=0.0)
    assert benchmark.rates(found["one"], 64) == pytest.approx((100, 50))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small checkpoint, one layer of four experts."""
    directory: Path = tmp_path_factory.mktemp("llm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "LAYERS", 1)
        patch.setattr(benchmark, "SIZES", benchmark.SIZES | {"num_experts": 4, "moe_intermediate_size": 32})
        benchmark.make(directory)
    return directory


def test_the_checkpoint_and_its_language_model(made: Path) -> None:
    config = json.loads((made / "text" / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["Qwen3MoeForCausalLM"] and config["num_hidden_layers"] == 1
    with safe_open(made / "text" / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert {"model.embed_tokens.weight", "lm_head.weight", "model.layers.0.mlp.experts.3.up_proj.weight"} <= names
    assert not any("vision" in name for name in names)
    index = json.loads((made / "text" / "model.safetensors.index.json").read_text(encoding="utf-8"))
    assert index["weight_map"] == dict.fromkeys(names, "model.safetensors")


def test_every_tensor_has_a_place_in_llama_cpp(made: Path) -> None:
    llama = script("benchmark_tools.llama_files")
    with safe_open(made / "text" / "model.safetensors", "pt") as file:
        found = [llama.gguf_name(name) for name in file.keys()]  # noqa: SIM118  (no dict)
    own = sorted(name for name in found if name is not None)
    attention = "attn_k attn_k_norm attn_norm attn_output attn_q attn_q_norm attn_v"
    experts = "ffn_down_exps ffn_gate_exps ffn_gate_inp ffn_norm ffn_up_exps"
    assert own == [
        *(f"blk.0.{part}.weight" for part in f"{attention} {experts}".split()),
        "output.weight",
        "output_norm.weight",
        "token_embd.weight",
    ]
    assert found.count(None) == 3 * 3
    for name in ("model.layers.0.mlp.shared_expert.up_proj.weight", "model.layers.0.self_attn.q_proj.bias"):
        with pytest.raises(SystemExit, match=name):
            llama.gguf_name(name)
