# SPDX-License-Identifier: Apache-2.0
"""The built-in model on targets whose engines are built on the device: `fastmmoe build` and `run` on the double."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from fastmmoe.runtime.bundle.manifest import Engines, load_manifest, read_engines, write_manifest
from fastmmoe.runtime.vlm import VLM
from tests.support.double import TENSORRT, Double
from tests.support.messages import question

PROMPT = "What color is the square?"
LIMITS = ("--max-tokens", "900", "--max-cache", "1000")


def command(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line, with the double in the place of CUDA and TensorRT."""
    program = [sys.executable, "-m", "fastmmoe.runtime.cli.main", *arguments]
    return subprocess.run(program, env=environment, capture_output=True, text=True, check=False, timeout=600)


def bundle_for(target: str, source: Path, directory: Path) -> Path:
    """A copy without engines, for another target whose graphs are the same; the plugin is this machine's."""
    shutil.copytree(source, directory, ignore=shutil.ignore_patterns("engines.json", "*.engine"))
    write_manifest(directory, msgspec.structs.replace(load_manifest(directory), target=target))
    return directory


@pytest.mark.parametrize(
    ("target", "gpu", "version"),
    [
        ("jetson-orin", "sm=87,name=Orin,integrated=1", "10.16.2.10"),
        ("jetson-orin-nano@jp6.2", "sm=87,name=Orin,integrated=1", "10.3.0"),
        ("jetson-thor", "sm=110,name=Thor,integrated=1", "10.16.2.10"),
        ("h100", "sm=90,name=H100", "11.4.0.106"),
    ],
)
def test_engines_of_the_device_answer_as_the_cpu(
    target: str, gpu: str, version: str, demo_bundles: tuple[Path, Path], pictures: list[str], tmp_path: Path
) -> None:
    bundle = bundle_for(target, demo_bundles[1], tmp_path / "bundle")
    environment = Double().environment(gpu=gpu) | {TENSORRT: version}
    built = command(environment, "build", str(bundle), *LIMITS)
    assert (built.returncode, built.stderr) == (0, "")
    described = dict(part.split("=") for part in gpu.split(","))
    first = built.stdout.splitlines()[0]
    assert first == f"tensorrt {version}, engines for {described['name']}, SM {described['sm']}"
    engines = read_engines(bundle)
    assert isinstance(engines, Engines)
    assert (engines.device, engines.compute_capabilities) == (described["name"], (int(described["sm"]),))
    assert engines.seconds.keys() == engines.files.keys()
    assert (bundle / "timing.cache").read_text() == f"timings of the double {version} 3"
    verified = command(environment, "verify", str(bundle))
    assert verified.returncode == 0 and "timing.cache" not in verified.stdout
    run = command(environment, "run", str(bundle), "--image", pictures[0], "--prompt", PROMPT, "--retention", "0.5")
    assert run.returncode == 0, run.stderr
    answer = VLM(demo_bundles[0]).generate(question(PROMPT, pictures[0]), retention=0.5)
    assert run.stdout.splitlines()[0] == answer.text


def test_a_second_build_and_one_of_another_version(demo_bundles: tuple[Path, Path], tmp_path: Path) -> None:
    """What was measured serves the next build; times of another version do not."""
    bundle = bundle_for("l4", demo_bundles[1], tmp_path / "bundle")
    for version, builds in (("11.4.0.106", 3), ("11.4.0.106", 6), ("10.16.2.10", 3)):
        built = command(Double().environment(gpu="sm=89,name=L4") | {TENSORRT: version}, "build", str(bundle), *LIMITS)
        assert built.returncode == 0, built.stderr
        assert ("the last build of this bundle took" in built.stdout) is (builds == 6 or version != "11.4.0.106")
        assert (bundle / "timing.cache").read_text().endswith(f" {version} {builds}")
        assert not [path for path in bundle.iterdir() if path.name.startswith(".")]


def test_another_gpu_is_refused(demo_bundles: tuple[Path, Path], tmp_path: Path) -> None:
    bundle = bundle_for("a100", demo_bundles[1], tmp_path / "bundle")
    built = command(Double().environment(gpu="sm=90,name=H100"), "build", str(bundle))
    words = "SM 90, target a100 is for SM 80 (A100 SXM 40GB, A100 SXM 80GB): export with --target h100 or h200"
    assert built.returncode == 2 and words in built.stderr


def test_a_dry_run_needs_nothing(demo_bundles: tuple[Path, Path], tmp_path: Path) -> None:
    bundle = bundle_for("b200", demo_bundles[1], tmp_path / "bundle")
    before = sorted(path.name for path in bundle.iterdir())
    shown = command(dict(os.environ), "build", str(bundle), "--dry-run", *LIMITS)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.count("trtexec \\\n") == 3 and "--profile=1" in shown.stdout
    assert sorted(path.name for path in bundle.iterdir()) == before
