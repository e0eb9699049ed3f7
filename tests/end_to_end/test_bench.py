# SPDX-License-Identifier: Apache-2.0
"""fastmmoe bench on real bundles: rows, rooflines that nothing beats, and what measuring costs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from fastmmoe.exporter.fit.cli import make_report
from fastmmoe.exporter.fit.plan import PlanOptions
from fastmmoe.runtime.bench.session import measure
from fastmmoe.runtime.bench.settings import BenchOptions
from fastmmoe.runtime.cli.main import main
from fastmmoe.runtime.vlm import VLM
from tests.support.counted_calls import counted
from tests.support.scripts import script

QUICK = ("-n", "2", "--new-tokens", "3", "-r", "1.0,0.5", "--max-tiles", "1")
MOST_MORE_CALLS = 0.1
"""Over those of a request's own code, without what compiled code does inside of them."""
MOST_OVERHEAD = 0.1
"""On a machine that other work keeps busy; scripts/measure_bench.py holds an idle one to 2 %."""


@pytest.mark.engines
def test_a_table_of_a_bundle(bundle: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    directory = str(bundle("dsvl2-mha"))
    capsys.readouterr()
    assert main(["bench", directory, *QUICK, "--batch", "1,2", "--concurrency", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    names = [line.split("|")[1].strip() for line in lines if line.startswith("| ")][1:]
    shapes = [re.sub(r"\d+ (?=r)", "N ", name) for name in names]
    expected = ["vision"]
    for kind, tests in (
        ("", ("prefill N", "decode dN", "first token", "request N")),
        (" b2", ("prefill N", "decode dN", "request N")),
        (" c2", ("first token", "request N")),
    ):
        expected += [f"{test} r{retention}{kind}" for retention in ("1", "0.5") for test in tests]
    assert shapes == expected


@pytest.mark.engines
def test_two_measurements_of_a_bundle_are_compared(
    bundle: Callable[..., Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    directory, files = str(bundle("dsvl2-mha")), [tmp_path / "a.json", tmp_path / "b.json"]
    capsys.readouterr()
    for file in files:
        assert main(["bench", directory, *QUICK, "--json"]) == 0
        file.write_text(capsys.readouterr().out)
    assert main(["bench", "--compare", *map(str, files), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["rows"]) == 9 and found["only"] == [] and found["differences"] == []


@pytest.mark.engines
def test_nodes_as_trtexec_writes_them(
    bundle: Callable[..., Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "profile.json"
    given = ("-n", "2", "--new-tokens", "3", "-r", "0.5", "--max-tiles", "1", "--export-profile", str(path))
    assert main(["bench", str(bundle("dsvl2-mha")), *given]) == 0
    count, *nodes = json.loads(path.read_text())
    assert count == {"count": 2}
    assert sum(node["percentage"] for node in nodes) == pytest.approx(100)
    assert {node["name"].partition("/")[0] for node in nodes} >= {"vision", "language_model"}
    assert any("experts" in node["name"] for node in nodes)


@pytest.mark.parametrize("name", ["dsvl2-mha", "internvl-qwen3moe"])
def test_nothing_is_faster_than_its_roofline(
    name: str, model_dir: Callable[[str], Path], bundle: Callable[..., Path], vlm: Callable[..., VLM]
) -> None:
    """Bench's own, and that of `fastmmoe plan` of a prompt that is no longer."""
    options = BenchOptions((1.0, 0.5), batches=(1, 2), repetitions=3, new_tokens=3, max_tiles=1)
    # Other work slows what measures the machine, too: the least of several.
    results = [measure(vlm(name), bundle(name), options)[0] for _ in range(2)]
    plans = [make_report(str(model_dir(name)), PlanOptions("cpu", tiles=1, text_tokens=8), (1.0,)) for _ in range(3)]
    pairs = list(zip(*(one.rows for one in results), strict=True))
    for found in pairs:
        bounds = [row.roofline_ms for row in found if row.roofline_ms is not None]
        assert len(bounds) == 2
        assert found[0].key == found[1].key
        assert min(bounds) < min(min(row.samples_ms) for row in found), found[0].key
    settings, limits = results[0].settings, plans[0].fit.limits
    assert limits.max_visual <= settings["visual_tokens"]
    assert limits.max_tokens - limits.max_visual <= settings["text_tokens"]
    planned = {
        "vision": min(one.times.vision.ms for one in plans),
        "prefill": min(one.times.rows[0].prefill.ms for one in plans),
        "decode": min(one.times.rows[0].decode.ms for one in plans),
    }
    for found in pairs:
        first = found[0]
        if first.test in planned and first.retention in (None, 1.0) and first.batch == 1:
            assert planned.pop(first.test) < min(min(row.samples_ms) for row in found), first.test
    assert not planned


@pytest.fixture
def overhead(vlm: Callable[..., VLM]) -> Callable[[int], float]:
    """Function repeats -> what bench adds to a request."""
    options = BenchOptions((0.5,), repetitions=1, warmup=0, new_tokens=8, max_tiles=1)
    return lambda repeats: script("measure_bench").overhead_of(vlm("dsvl2-mha"), repeats, options)


def test_measuring_is_few_calls(overhead: Callable[[int], float], monkeypatch: pytest.MonkeyPatch) -> None:
    with counted() as calls:
        monkeypatch.setattr(script("measure_bench"), "time", SimpleNamespace(perf_counter=lambda: calls.count))
        more = overhead(1)
    assert 0 < more < MOST_MORE_CALLS


@pytest.mark.slow
def test_measuring_costs_little(overhead: Callable[[int], float]) -> None:
    assert overhead(11) < MOST_OVERHEAD
