# SPDX-License-Identifier: Apache-2.0
"""What is in the built libraries, and where the scripts that build them take CUDA and TensorRT from."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PLUGINS = REPOSITORY / "plugins"
SCRIPTS = REPOSITORY / "scripts"

TENSORRT = "libfastmmoe_trt.so"
ORT_CUDA = "libfastmmoe_ort_cuda.so"
JETSON = f"aarch64/{TENSORRT}"
JETPACK6 = f"jetpack6/{TENSORRT}"
BUILT_BY = {
    "libfastmmoe_ort.so": "make native",
    TENSORRT: "make plugins",
    ORT_CUDA: "make plugins",
    JETSON: "scripts/build_plugins.sh --aarch64",
    JETPACK6: "make jetpack6",
}
# Not built by `make test`, whose time it would take.
FOR_JETPACK6 = pytest.param(JETPACK6, marks=pytest.mark.slow)
LIBRARIES = [FOR_JETPACK6 if name == JETPACK6 else name for name in BUILT_BY]
CUDA_LIBRARIES = [name for name in LIBRARIES if name != "libfastmmoe_ort.so"]

COMMON_EXPORTS = {"FmmContract", "FmmVersion"}
EXPORTS = {
    "ort": COMMON_EXPORTS | {"RegisterCustomOps", "FmmCpuIsa"},
    "ort_cuda": COMMON_EXPORTS | {"RegisterCustomOps"},
    "trt": COMMON_EXPORTS | {"getCreators", "getPluginCreators", "setLoggerFinder"},
}

# Ubuntu 22.04, which JetPack 6 is made of; JetPack 7 has newer ones.
NEWEST = {"GLIBC": (2, 35), "GLIBCXX": (3, 4, 30)}
# manylinux_2_28, which a wheel's library may be called.
NEWEST_OF_WHEEL = {"GLIBC": (2, 28), "GLIBCXX": (3, 4, 25), "CXXABI": (1, 3, 11), "GCC": (8, 1)}

# Prints how many operators the library brings.
LOADER = """
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
int main(int count, char** arguments) {
  void* library = dlopen(arguments[1], RTLD_NOW);
  if (library == NULL) return puts(dlerror());
  int32_t creators = -1;
  ((void* (*)(int32_t*))dlsym(library, "getCreators"))(&creators);
  return printf("%d creators", creators) < 0;
}
"""

FATBIN_MAGIC = 0xBA55ED50
PTX, SASS = 1, 2


def library(name: str) -> Path:
    path = PLUGINS / "lib" / name
    if not path.is_file():
        pytest.skip(f"needs plugins/lib/{name}: {BUILT_BY[name]}")
    return path


def readelf(path: Path, *options: str) -> str:
    return subprocess.run(["readelf", "-W", *options, str(path)], check=True, capture_output=True, text=True).stdout


def fatbin_section(path: Path) -> bytes:
    """The section that holds the kernels' code."""
    found = re.search(r"\s\.nv_fatbin\s+PROGBITS\s+\w+\s+(\w+)\s+(\w+)\s", readelf(path, "--sections"))
    assert found, f"{path} has no section .nv_fatbin"
    offset, size = (int(number, 16) for number in found.groups())
    return path.read_bytes()[offset : offset + size]


def fatbins(section: bytes) -> Iterator[list[tuple[int, int]]]:
    """For every object file of kernels: (PTX or SASS, compute capability) of each of its parts."""
    position = section.find(struct.pack("<I", FATBIN_MAGIC))
    while position >= 0:
        header_bytes, body_bytes = struct.unpack_from("<HQ", section, position + 6)
        part, end = position + header_bytes, position + header_bytes + body_bytes
        parts = []
        while part < end:
            kind, part_header_bytes, part_bytes = struct.unpack_from("<HxxIQ", section, part)
            parts.append((kind, struct.unpack_from("<I", section, part + 28)[0]))
            part += part_header_bytes + part_bytes
        yield parts
        position = section.find(struct.pack("<I", FATBIN_MAGIC), end)


@pytest.mark.parametrize("name", LIBRARIES)
def test_only_the_entry_points_are_exported(name: str) -> None:
    symbols = re.findall(r"\s(?:GLOBAL|WEAK|UNIQUE)\s+\w+\s+\d+\s+(\S+)", readelf(library(name), "--dyn-syms"))
    framework = Path(name).stem.removeprefix("libfastmmoe_")
    assert set(symbols) == EXPORTS[framework]


@pytest.mark.parametrize("name", LIBRARIES)
def test_needs_nothing_that_a_target_lacks(name: str) -> None:
    dynamic = readelf(library(name), "--dynamic")
    needed = set(re.findall(r"\(NEEDED\).*\[(\S+)\]", dynamic))
    # CUDA 13 is linked statically; JetPack 6 brings the library.
    allowed = {"libc.so.6", "libm.so.6", "libgcc_s.so.1", "libstdc++.so.6", "ld-linux-x86-64.so.2"}
    assert needed <= allowed | ({"libcudart.so.12"} if name == JETPACK6 else set())
    assert "libc.so.6" in needed
    assert not re.search(r"\((RPATH|RUNPATH|TEXTREL)\)", dynamic)


def test_wheels_library_needs_nothing_newer_than_its_tag() -> None:
    text = readelf(library("libfastmmoe_ort.so"), "--version-info")
    versions = re.findall(r"Name: (GLIBC|GLIBCXX|CXXABI|GCC)_([\d.]+)", text)
    assert {family for family, _ in versions} >= {"GLIBC", "GLIBCXX"}
    assert not [v for v in versions if tuple(map(int, v[1].split("."))) > NEWEST_OF_WHEEL[v[0]]]


@pytest.mark.parametrize("name", [JETSON, FOR_JETPACK6])
def test_system_libraries_of_jetson_are_new_enough(name: str) -> None:
    versions = re.findall(r"Name: (GLIBC|GLIBCXX)_([\d.]+)", readelf(library(name), "--version-info"))
    assert {family for family, _ in versions} == set(NEWEST)
    newer = [version for version in versions if tuple(map(int, version[1].split("."))) > NEWEST[version[0]]]
    assert not newer
    assert re.search(r"Machine:\s+AArch64", readelf(library(name), "--file-header"))


@pytest.mark.parametrize("name", [JETSON, FOR_JETPACK6])
def test_loads_on_an_emulated_jetson(name: str, tmp_path: Path) -> None:
    path = library(name)
    for tool in ("aarch64-linux-gnu-g++-12", "qemu-aarch64-static"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}")
    loader = tmp_path / "loader"
    compiler = ["aarch64-linux-gnu-g++-12", "-x", "c++", "-", "-o", str(loader)]
    subprocess.run(compiler, input=LOADER, check=True, text=True)
    # The scripts that built for JetPack 6 have fetched its CUDA runtime library.
    runtime = ":".join(map(str, (REPOSITORY / ".build" / "cuda-aarch64").glob("12.*")))
    qemu = ["qemu-aarch64-static", "-L", "/usr/aarch64-linux-gnu", "-E", f"LD_LIBRARY_PATH={runtime}"]
    done = subprocess.run([*qemu, str(loader), str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "4 creators"), done.stderr


@pytest.mark.parametrize("name", CUDA_LIBRARIES)
def test_code_for_each_architecture_and_ptx_for_later_ones(name: str) -> None:
    objects = list(fatbins(fatbin_section(library(name))))
    assert len(objects) == len(list(PLUGINS.glob("*/cuda/*.cu")))
    assert all(sorted(parts) == sorted(objects[0]) for parts in objects)
    sass = [capability for kind, capability in objects[0] if kind == SASS]
    assert min(sass) >= 80
    assert [capability for kind, capability in objects[0] if kind == PTX] == [max(sass)]
    if name in (JETSON, JETPACK6):
        assert 87 in sass


def test_both_libraries_hold_the_same_kernels() -> None:
    section = fatbin_section(library(TENSORRT))
    assert len(section) > 100_000
    assert section == fatbin_section(library(ORT_CUDA)), "the libraries were built at different times"


def toolkit(folder: Path, files: tuple[str, ...] = ("bin/nvcc", "include/cuda_runtime.h")) -> Path:
    """A folder that looks like a CUDA toolkit; its nvcc says as the real one does where it is."""
    for name in files:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"#!/bin/sh\necho '#$ TOP={folder}/bin/..' >&2\n", "utf-8")
        file.chmod(0o755)
    return folder


def run_script(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if key not in ("CUDA_HOME", "FASTMMOE_TENSORRT_INCLUDE")}
    return subprocess.run(
        ["bash", *map(str, command)], env=clean | environment, capture_output=True, text=True, check=False
    )


def test_cuda_home_comes_before_nvcc_in_path(tmp_path: Path) -> None:
    home, other = toolkit(tmp_path / "home"), toolkit(tmp_path / "other")
    path = f"{other / 'bin'}:{os.environ['PATH']}"
    fetch = SCRIPTS / "fetch_cuda.sh"
    assert run_script(fetch, tmp_path / "new", PATH=path).stdout.strip() == str(other)
    assert run_script(fetch, tmp_path / "new", PATH=path, CUDA_HOME=str(home)).stdout.strip() == str(home)
    assert not (tmp_path / "new").exists()


def test_headers_are_enough_for_the_emulator_but_not_for_a_build(tmp_path: Path) -> None:
    home = str(toolkit(tmp_path / "home", files=("include/cuda_runtime.h",)))
    fetch = SCRIPTS / "fetch_cuda.sh"
    assert run_script(fetch, "--headers", tmp_path / "new", CUDA_HOME=home).stdout.strip() == home
    refused = run_script(fetch, tmp_path / "new", CUDA_HOME=home)
    assert refused.returncode != 0
    assert re.fullmatch(rf"fetch_cuda.sh: CUDA_HOME is '{home}', expected .*bin/nvcc\n", refused.stderr)


def test_tensorrt_without_the_plugin_interface_is_refused(tmp_path: Path) -> None:
    (tmp_path / "NvInfer.h").write_text("// TensorRT 8\n", "utf-8")
    fetch = SCRIPTS / "fetch_tensorrt_headers.sh"
    refused = run_script(fetch, tmp_path / "new", FASTMMOE_TENSORRT_INCLUDE=str(tmp_path))
    assert refused.returncode != 0
    assert len(refused.stderr.splitlines()) == 1
    assert str(tmp_path) in refused.stderr
    (tmp_path / "NvInferRuntime.h").write_text("class IPluginV3OneBuild;\n", "utf-8")
    found = run_script(fetch, tmp_path / "new", FASTMMOE_TENSORRT_INCLUDE=str(tmp_path))
    assert found.stdout.strip() == str(tmp_path)


def test_an_architecture_that_nvcc_does_not_know_is_refused(tmp_path: Path) -> None:
    if not (os.environ.get("CUDA_HOME") or shutil.which("nvcc") or Path("/usr/local/cuda").is_dir()):
        pytest.skip("needs a CUDA toolkit: set CUDA_HOME or put nvcc in PATH")
    home = subprocess.run(["bash", SCRIPTS / "fetch_cuda.sh", tmp_path], check=True, capture_output=True, text=True)
    command = ["cmake", "-S", str(PLUGINS), "-B", str(tmp_path / "build"), "-DFASTMMOE_CUDA_ARCHS=87;95"]
    command.append(f"-DFASTMMOE_CUDA_HOME={home.stdout.strip()}")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "FASTMMOE_CUDA_ARCHS has '95', expected some of" in " ".join(done.stderr.split())


@pytest.mark.slow
def test_kernels_compile_for_jetpack_6_without_spills(tmp_path: Path) -> None:
    fetched = run_script(SCRIPTS / "fetch_cuda12.sh", REPOSITORY / ".build" / "cuda-12")
    assert fetched.returncode == 0, fetched.stderr
    nvcc = Path(fetched.stdout.strip()) / "bin" / "nvcc"
    flags = ["-std=c++17", "-O3", "-arch=sm_87", f"-I{PLUGINS}", "-Xptxas", "-v"]
    for source in PLUGINS.glob("*/cuda/*.cu"):
        command = [str(nvcc), *flags, "-cubin", str(source), "-o", str(tmp_path / "kernel.cubin")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr)
        assert spills, f"ptxas reported no kernel of {source}"
        assert set(spills) == {("0", "0")}
