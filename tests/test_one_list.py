# SPDX-License-Identifier: Apache-2.0
"""What is written once: a copy of the sources with one entry more, in one file, and everything else follows."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support.manifests import write_toy_bundle

REPOSITORY = Path(__file__).resolve().parents[1]
NEW_ENTRY = """OF_CALL = (
    Entry(
        "temperature",
        ("T", "sites"),
        "float32",
        "A number of every row and site.",
        lambda call, _: np.full((sum(call.tokens), len(call.policy.sites)), 0.5),
        PRUNES,
    ),
"""
SEEN_BY_ALL = """
import json, sys
from pathlib import Path
import numpy as np
from fastmmoe.runtime.backends.tensorrt.profiles import engine_profiles, resolve_limits
from fastmmoe.runtime.bundle import graph_io, signatures
from fastmmoe.runtime.bundle.manifest import load_manifest
from fastmmoe.runtime.method.call import Call, Chunk
from fastmmoe.runtime.method.schedule import plan_request

manifest = load_manifest(Path(sys.argv[1]))
info, policy = manifest.language_model, manifest.policy
schedule = plan_request(policy, visual_tokens=4, moe_layers=info.moe_layers, top_k=info.top_k)
chunk = Chunk(0, np.zeros((9, info.hidden_size), np.float32), np.arange(2, 6, dtype=np.int32), schedule)
feed = signatures.feeds(info, Call(policy, [chunk], [0], [[0]] * 3, 0.5, 0))["temperature"]
assert (feed.shape, feed.dtype, float(feed[0, 0])) == ((9, len(policy.sites)), np.float32, 0.5)
limits = resolve_limits(manifest)
prefill, decode = engine_profiles(manifest, limits)["language_model"]
assert prefill["temperature"][2] == (limits.max_tokens, len(policy.sites))
assert decode["temperature"] == ((1, len(policy.sites)),) * 3
(traced,) = [t for t in signatures.signatures(manifest)["language_model"].inputs if t.name == "temperature"]
assert traced == ("temperature", ("T", len(policy.sites)), "float32")
"""
NEW_SETTING = """    window: Annotated[PatchCount,"""
SETTING_SEEN = """
import sys
from pathlib import Path
from fastmmoe.exporter.cli import read_arguments
from fastmmoe.exporter.pruning.policy_file import PolicyFile, read_policy, write_policy
from fastmmoe.exporter.pruning.settings import Layers, PolicyModel, resolve_policy

config = read_arguments(["demo", "out", "--patience", "0.25"])
layers = Layers(6, (1, 2, 3, 4, 5), (1, 2, 3, 4, 5), 4)
policy = resolve_policy(config.policy, family="deepseek_vl2", layers=layers)
assert policy.patience == 0.25
assert resolve_policy(read_arguments(["demo"]).policy, family="deepseek_vl2", layers=layers).patience == 0.75
model = PolicyModel(family="deepseek_vl2", layers=6, moe_layers=layers.moe, top_k=4, checkpoint_identity="0")
path = Path(sys.argv[1])
write_policy(path, PolicyFile.of(policy, model))
assert read_policy(path).options().patience == 0.25
"""
NEW_TARGET = """
TARGETS["laptop"] = replace(TARGETS["cpu"], name="laptop", dtypes=("fp16",), activation_dtypes=("float32",))
"""
TARGET_SEEN = """
from fastmmoe.exporter.cli import build_parser
from fastmmoe.exporter.targets import activation_dtype, check_kernels, choose_dtype
from fastmmoe.runtime.machines.targets import TARGETS

arguments = build_parser().parse_args(["demo", "--target", "laptop"])
target = TARGETS[arguments.target]
assert (choose_dtype(target, None), activation_dtype(target, "fp16")) == ("fp16", "float32")
assert target.backend == "onnxruntime"
assert check_kernels(target, None, None, None) is None
help = " ".join(build_parser().format_help().split())
assert "a100, l4, l40s, h100, h200, b200, rtx, laptop (default cpu)" in help
"""


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A copy of the sources that may be edited."""
    for folder in ("fastmmoe", "runtime", "plugins", "exporter", "scripts", "docs"):
        ignored = shutil.ignore_patterns("lib", "demo_model", "__pycache__", "testing", "*.png", "*.svg")
        shutil.copytree(REPOSITORY / folder, tmp_path / folder, symlinks=True, ignore=ignored)
    shutil.copy(REPOSITORY / "README.md", tmp_path)
    return tmp_path


def edit(file: Path, old: str, new: str) -> None:
    """Replace one place of a file."""
    text = file.read_text()
    assert text.count(old) == 1
    file.write_text(text.replace(old, new))


def run(sources: Path, *command: object) -> None:
    """A Python process that imports the copy: without site, whose finder of an editable install would come first."""
    places = (sources, sources / "scripts", Path(np.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, places))}
    program = [sys.executable, "-S", *map(str, command)]
    result = subprocess.run(program, env=environment, cwd=sources, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_the_documents_are_up_to_date() -> None:
    command = [sys.executable, str(REPOSITORY / "scripts" / "make_tables.py"), "--check"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_a_new_input_of_the_graph(sources: Path, tmp_path: Path) -> None:
    edit(sources / "runtime" / "bundle" / "graph_io.py", "OF_CALL = (\n", NEW_ENTRY)
    run(sources, "-c", SEEN_BY_ALL, write_toy_bundle(tmp_path / "toy"))
    run(sources, sources / "scripts" / "make_tables.py")
    row = "| `temperature` | float32 [T, sites] | A number of every row and site. Only with a pruning method. |"
    assert row in (sources / "docs" / "bundle.md").read_text()


def test_a_new_setting(sources: Path) -> None:
    added = '    patience: Annotated[Share, _setting("how long to wait", default=0.75, metavar="P")]\n'
    edit(sources / "runtime" / "method" / "policy.py", NEW_SETTING, added + NEW_SETTING)
    run(sources, "-c", SETTING_SEEN, sources / "policy.json")
    run(sources, sources / "scripts" / "make_tables.py")
    row = "| `patience` | how long to wait | 0 to 1 | `0.75` | yes |"
    assert row in (sources / "docs" / "methods.md").read_text()


def test_a_new_target(sources: Path) -> None:
    targets = sources / "runtime" / "machines" / "targets.py"
    targets.write_text(targets.read_text() + NEW_TARGET)
    run(sources, "-c", TARGET_SEEN)
    run(sources, sources / "scripts" / "make_tables.py")
    row = (
        "| `laptop` | any | - | none: ONNX Runtime | - | fp16 | float, int8, int4, fp8 | float, bf16, int8, int4 | - |"
    )
    assert row in (sources / "docs" / "tensorrt.md").read_text()
