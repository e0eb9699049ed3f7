# SPDX-License-Identifier: Apache-2.0
"""Bundles beside made machines."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fastmmoe.runtime.bundle.manifest import ENGINES, MANIFEST, FileEntry, load_manifest, write_manifest
from fastmmoe.runtime.bundle.storage import LinearInfo
from fastmmoe.runtime.doctor import bundle as probes
from fastmmoe.runtime.doctor.bundle import probe_bundle
from fastmmoe.runtime.doctor.host import Finding
from fastmmoe.runtime.machines.gpu import Gpu
from tests.support.double import Double
from tests.support.machine_trees import LAPTOP, machine, memory
from tests.support.manifests import write_toy_bundle
from tests.support.toy_engines import write_engine_bundle

RTX_4090 = Gpu("RTX 4090", 89)


@pytest.fixture
def findings(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Finding]]:
    """Function (bundle, files) -> findings by name."""

    def probe(directory: Path, files: Any = LAPTOP) -> dict[str, Finding]:
        made = machine(tmp_path_factory.mktemp("machine"), files)
        return {finding.name: finding for finding in probe_bundle(made, directory)}

    return probe


def test_a_bundle_that_fits(findings: Callable[..., dict[str, Finding]], tmp_path: Path) -> None:
    found = findings(write_toy_bundle(tmp_path / "toy"))
    assert found == {
        "bundle": Finding("bundle", "ok", "toy for cpu, fp32"),
        "bundle memory": Finding("bundle memory", "ok", "weights 0.00 GB"),
    }


def test_formats_of_weights(findings: Callable[..., dict[str, Finding]], tmp_path: Path) -> None:
    directory = write_toy_bundle(tmp_path / "toy")
    manifest = load_manifest(directory)
    int4, int8 = (
        LinearInfo(weight_format=name, group_size=128, zero_points=False)  # type: ignore[arg-type]
        for name in ("int4", "int8")
    )
    linears = msgspec.structs.replace(manifest.linears, dense=int4, head=int8)
    ops = manifest.ops | {"FmmLinear": 1, "FmmRotary": 1}
    write_manifest(directory, msgspec.structs.replace(manifest, linears=linears, ops=ops))
    assert findings(directory)["bundle"].found == "toy for cpu, fp32 with weights in int4 and int8"


@pytest.mark.parametrize("text", ["", "{}", "[1]", "\xff", '{"format": 99}'])
def test_a_damaged_manifest(text: str, findings: Callable[..., dict[str, Finding]], tmp_path: Path) -> None:
    directory = write_toy_bundle(tmp_path / "toy")
    (directory / MANIFEST).write_text(text, encoding="latin-1")
    found = findings(directory)["bundle"]
    assert found.severity == "problem" and found.mend == "export again"


def test_no_bundle_and_lost_files(findings: Callable[..., dict[str, Finding]], tmp_path: Path) -> None:
    found = findings(tmp_path / "none")["bundle"]
    assert found.severity == "problem" and "no such directory" in found.found and found.mend
    directory = write_toy_bundle(tmp_path / "toy")
    (directory / "vision.onnx").unlink()
    found = findings(directory)["bundle"]
    assert found.severity == "problem" and found.mend == "copy the whole bundle or export again"


def test_weights_and_memory(
    findings: Callable[..., dict[str, Finding]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = write_toy_bundle(tmp_path / "toy")
    manifest = load_manifest(directory)
    entry = FileEntry(bytes=10 * 10**9, sha256="0" * 64)
    large = msgspec.structs.replace(manifest, files={**manifest.files, "vision.data": entry})
    monkeypatch.setattr(probes, "read_manifest", lambda _: large)
    for total, free, severity in ((64, 32, "ok"), (64, 4, "warning"), (8, 4, "problem")):
        found = findings(directory, {"proc/meminfo": memory(total, free, 1)})["bundle memory"]
        assert found.severity == severity and found.found.startswith("weights 10.00 GB")
        assert bool(found.mend) == (severity != "ok")


def test_engines_and_the_gpu(
    double: Double, findings: Callable[..., dict[str, Finding]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "toy"
    write_engine_bundle(directory, double.modules().trt)
    monkeypatch.setattr(probes, "find_gpu", lambda: RTX_4090)
    found = findings(directory)
    assert {finding.severity for finding in found.values()} == {"ok"}
    assert found["bundle machine"].found == "RTX 4090, SM 89"
    assert found["engines"].found.startswith("built by tensorrt_rtx 1.7.")
    monkeypatch.setattr(probes, "find_gpu", lambda: Gpu("GTX 1080", 61))
    other = findings(directory)["bundle machine"]
    assert other.severity == "problem" and other.found == "for SM 80, 86, 89, 120, GTX 1080 is SM 61" and other.mend
    monkeypatch.setattr(probes, "find_gpu", lambda: None)
    assert findings(directory)["bundle machine"].severity == "problem"
    monkeypatch.setattr(probes.platform, "machine", lambda: "riscv64")
    other = findings(directory)["bundle machine"]
    assert other.found == "for x86_64, this machine is riscv64"
    assert other.mend == "copy it to a machine of target rtx"


def test_engines_that_are_missing_or_of_another_gpu(
    double: Double, findings: Callable[..., dict[str, Finding]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "toy"
    write_engine_bundle(directory, double.modules().trt)
    monkeypatch.setattr(probes, "find_gpu", lambda: RTX_4090)
    engines = json.loads((directory / ENGINES).read_text())
    (directory / ENGINES).write_text(json.dumps(engines | {"device": "A100"}))
    found = findings(directory)["engines"]
    assert found.severity == "problem" and found.found.endswith("for A100, this is RTX 4090")
    assert found.mend == f"fastmmoe build {directory}"
    (directory / ENGINES).write_text("{")
    found = findings(directory)["engines"]
    assert found.severity == "problem" and "build the engines again" in found.mend
    (directory / ENGINES).unlink()
    assert findings(directory)["engines"] == Finding(
        "engines", "warning", "not built yet", f"fastmmoe build {directory}"
    )
    manifest = load_manifest(directory)
    assert manifest.plugin is not None
    old = msgspec.structs.replace(manifest.plugin, version="0.0.1")
    write_manifest(directory, msgspec.structs.replace(manifest, plugin=old))
    found = findings(directory)["engines"]
    assert found.severity == "problem" and "of version 0.0.1" in found.found
