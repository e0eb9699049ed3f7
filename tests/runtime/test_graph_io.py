# SPDX-License-Identifier: Apache-2.0
"""The graph's inputs are written once: an entry more, and feeds, profiles, traced inputs and the document follow."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from fastmmoe.runtime.bundle import graph_io
from fastmmoe.runtime.bundle.manifest import LanguageModelInfo
from fastmmoe.runtime.method.call import Call, Chunk
from fastmmoe.runtime.method.policy import Policy
from fastmmoe.runtime.method.schedule import plan_request

REPOSITORY = Path(__file__).resolve().parents[2]
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
from fastmmoe.runtime.bundle import graph_io
from fastmmoe.runtime.bundle.manifest import load_manifest
from fastmmoe.runtime.method.call import Call, Chunk
from fastmmoe.runtime.method.schedule import plan_request

manifest = load_manifest(Path(sys.argv[1]))
info, policy = manifest.language_model, manifest.policy
schedule = plan_request(policy, visual_tokens=4, moe_layers=info.moe_layers, top_k=info.top_k)
chunk = Chunk(0, np.zeros((9, info.hidden_size), np.float32), np.arange(2, 6, dtype=np.int32), schedule)
feed = graph_io.feeds(info, Call(policy, [chunk], [0], 0.5, 0))["temperature"]
assert (feed.shape, feed.dtype, float(feed[0, 0])) == ((9, len(policy.sites)), np.float32, 0.5)
limits = resolve_limits(manifest)
prefill, decode = engine_profiles(manifest, limits)["language_model"]
assert prefill["temperature"][2] == (limits.max_tokens, len(policy.sites))
assert decode["temperature"] == ((1, len(policy.sites)),) * 3
(traced,) = [t for t in graph_io.signatures(manifest)["language_model"].inputs if t.name == "temperature"]
assert traced == ("temperature", ("T", len(policy.sites)), "float32")
"""


def test_the_document_is_up_to_date() -> None:
    command = [sys.executable, REPOSITORY / "scripts" / "make_graph_io.py", "--check"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_a_new_input_is_one_entry(tmp_path: Path, toy_bundle: Path) -> None:
    for folder in ("fastmmoe", "runtime", "plugins", "exporter", "scripts"):
        ignored = shutil.ignore_patterns("lib", "demo_model", "__pycache__", "testing")
        shutil.copytree(REPOSITORY / folder, tmp_path / folder, symlinks=True, ignore=ignored)
    table = tmp_path / "runtime" / "bundle" / "graph_io.py"
    before = table.read_text()
    table.write_text(before.replace("OF_CALL = (\n", NEW_ENTRY, 1))
    assert table.read_text() != before
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{tmp_path / 'scripts'}"}
    program = [sys.executable, "-c", SEEN_BY_ALL, toy_bundle]
    result = subprocess.run(program, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    document = tmp_path / "bundle.md"
    shutil.copyfile(REPOSITORY / "docs" / "bundle.md", document)
    script = [sys.executable, tmp_path / "scripts" / "make_graph_io.py", "--docs", document]
    subprocess.run(script, env=environment, check=True)
    row = "| `temperature` | float32 [T, sites] | A number of every row and site. Only with a pruning method. |"
    assert row in document.read_text()


@pytest.mark.parametrize("method", ["none", "fastmmoe", "random", "fastv", "sparsevlm"])
def test_feeds_are_the_inputs_but_the_caches(method: str, document: Callable[[str], dict[str, Any]]) -> None:
    toy = document("deepseek_vl2")
    info = msgspec.convert(toy["language_model"], LanguageModelInfo)
    layers = {"fastmmoe": [1, 2], "random": [1, 2], "fastv": [2], "sparsevlm": [0, 2]}
    policy = msgspec.convert(toy["policy"] | {"method": "all", "prune_layers": layers}, Policy)
    schedule = plan_request(
        policy, visual_tokens=30, moe_layers=info.moe_layers, top_k=info.top_k, method=method, retention=None
    )
    chunk = Chunk(0, np.zeros((40, info.hidden_size), np.float32), np.arange(3, 33, dtype=np.int32), schedule)
    feeds = graph_io.feeds(info, Call(policy, [chunk], [7], alpha=0.5, seed=1))
    inputs = graph_io.language_model_inputs(info, policy, "float32")
    caches = graph_io.cache_inputs(info, policy, "float32")
    assert [t.name for t in inputs] == [*feeds, *(t.name for t in caches)]
    for tensor in inputs[: len(feeds)]:
        assert feeds[tensor.name].dtype == tensor.dtype
        fixed = [(a, b) for a, b in zip(feeds[tensor.name].shape, tensor.shape, strict=True) if isinstance(b, int)]
        assert all(a == b for a, b in fixed)
    assert graph_io.cached_rows(info, policy, chunk)[0] == 40
