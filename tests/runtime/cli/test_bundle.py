# SPDX-License-Identifier: Apache-2.0
"""fastmmoe inspect and fastmmoe verify on damaged bundles; whole ones are in tests/end_to_end."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import onnx
import pytest

from fastmmoe.runtime.bundle.manifest import (
    FORMAT,
    MANIFEST,
    Engines,
    Limits,
    file_entry,
    load_manifest,
    write_manifest,
)
from fastmmoe.runtime.cli.main import main


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_what_is_no_bundle(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, str(tmp_path)]) == 2
    assert "no manifest.json: not a bundle" in capsys.readouterr().err


def test_a_damaged_bundle_is_shown_with_its_damage(toy_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (toy_bundle / "tokenizer.json").unlink()
    (toy_bundle / "extra").touch()
    assert main(["inspect", str(toy_bundle)]) == 2
    output = capsys.readouterr()
    assert "DAMAGED: " in output.out and "tokenizer.json: missing" in output.out and "extra: not in" in output.out
    assert "prune layers  fastmmoe 1,2\n" in output.out
    (line,) = output.err.splitlines()
    assert f"{toy_bundle}: damaged in 5 place(s)" in line
    assert main(["inspect", str(toy_bundle), "--json"]) == 2
    found = json.loads(capsys.readouterr().out)
    # The toy bundle's graphs are none.
    assert len(found["damage"]) == 5 and found["files"]["vision.onnx"]["bytes"] == 11


def test_verify_names_every_damaged_file(toy_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (toy_bundle / "tokenizer.json").unlink()
    for name in ("vision.onnx", "embedding.onnx"):
        (toy_bundle / name).write_text(name.upper())
    path = toy_bundle / MANIFEST
    path.write_text(path.read_text().replace('"alpha": 0.3', '"alpha": 0.2'))
    assert main(["verify", str(toy_bundle)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    for words in (
        "tokenizer.json: missing",
        "vision.onnx: damaged",
        "embedding.onnx: damaged",
        "manifest.json: damaged",
    ):
        assert words in line


def write_engines(directory: Path, manifest_sha256: str) -> None:
    (directory / "vision.engine").write_text("engine")
    engines = Engines(
        format=FORMAT,
        fastmmoe_version="0",
        plugin_version="0",
        bundle_sha256=manifest_sha256,
        module="tensorrt",
        tensorrt_version="10",
        device=None,
        compute_capabilities=(87,),
        limits=Limits(max_tokens=1, max_visual=1, max_cache=1, max_tiles=1, max_batch=1),
        files={"vision.engine": file_entry(directory / "vision.engine")},
        seconds={"vision.engine": 1.0},
    )
    (directory / "engines.json").write_bytes(msgspec.json.encode(engines))


def test_engines_are_verified(toy_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_engines(toy_bundle, file_entry(toy_bundle / MANIFEST).sha256)
    main(["verify", str(toy_bundle)])
    assert "[✓] engines of tensorrt 10: SHA-256 as built, of this manifest" in capsys.readouterr().out
    (toy_bundle / "vision.engine").write_text("ENGINE")
    assert main(["verify", str(toy_bundle)]) == 2
    assert "vision.engine: damaged: SHA-256" in capsys.readouterr().err
    write_engines(toy_bundle, "0" * 64)
    assert main(["verify", str(toy_bundle)]) == 2
    assert "engines.json: built from a manifest of SHA-256 000000000000" in capsys.readouterr().err
    (toy_bundle / "engines.json").write_text("{")
    assert main(["verify", str(toy_bundle)]) == 2
    error = capsys.readouterr().err
    assert "engines.json: damaged, or written by another version" in error
    assert error.endswith(f"; build the engines again: fastmmoe build {toy_bundle}\n")


def test_verify_reads_no_file_outside_and_waits_for_no_pipe(
    toy_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (toy_bundle / "vision.onnx").unlink()
    os.mkfifo(toy_bundle / "vision.onnx")
    (toy_bundle.parent / "secret").write_text("secret")
    path = toy_bundle / MANIFEST
    document = json.loads(path.read_text())
    document["files"]["vision.onnx"]["bytes"] = 0
    document["files"]["../secret"] = {"bytes": 6, "sha256": "0" * 64}
    path.write_text(json.dumps(document))
    assert main(["verify", str(toy_bundle)]) == 2
    line = capsys.readouterr().err
    assert "vision.onnx: no regular file" in line and "'../secret': expected a bare name" in line
    assert "secret: damaged" not in line


@pytest.mark.parametrize("command", [["inspect"], ["inspect", "--json"], ["verify"]])
@pytest.mark.parametrize("kind", ["pipe", "endless", "huge", "loop", "folder"])
def test_what_is_no_file_of_its_size_is_not_read(
    kind: str, command: list[str], toy_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Reading a pipe or /dev/zero would never end."""
    path = toy_bundle / "vision.onnx"
    if kind != "huge":
        path.unlink()
    make: dict[str, Callable[[], object]] = {
        "pipe": lambda: os.mkfifo(path),
        "endless": lambda: path.symlink_to("/dev/zero"),
        "huge": lambda: os.truncate(path, 1 << 40),
        "loop": lambda: path.symlink_to(path),
        "folder": path.mkdir,
    }
    make[kind]()
    assert main([*command, str(toy_bundle)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "vision.onnx: " in line


def test_engines_of_no_size_are_not_read(toy_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (toy_bundle / "engines.json").touch()
    os.truncate(toy_bundle / "engines.json", 1 << 40)
    assert main(["inspect", str(toy_bundle), "--json"]) == 2
    assert any("engines.json: 1099511627776 bytes" in line for line in json.loads(capsys.readouterr().out)["damage"])


def test_a_tensor_of_astronomic_size(toy_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Python refuses to print integers of thousands of digits."""
    path, manifest = toy_bundle / "vision.onnx", load_manifest(toy_bundle)
    values = onnx.TensorProto(dims=[1 << 62] * 300, data_location=onnx.TensorProto.EXTERNAL)
    values.external_data.add(key="location", value="vision.data")
    path.write_bytes(onnx.ModelProto(graph=onnx.GraphProto(initializer=[values])).SerializeToString())
    write_manifest(toy_bundle, msgspec.structs.replace(manifest, files=manifest.files | {path.name: file_entry(path)}))
    assert main(["inspect", str(toy_bundle)]) == 2
    assert "vision.onnx: says that it has more than" in capsys.readouterr().out


def test_names_cannot_write_lines_of_their_own(toy_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_manifest(toy_bundle, msgspec.structs.replace(load_manifest(toy_bundle), model="a\n[\u2713] whole\x1b[2J"))
    (toy_bundle / "b\nc").touch()
    assert main(["inspect", str(toy_bundle)]) == 2
    output = capsys.readouterr()
    assert "model         a\\n[\u2713] whole\\x1b[2J" in output.out and "b\\nc: not in manifest.json" in output.out
    assert len(output.err.splitlines()) == 1
