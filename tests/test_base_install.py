# SPDX-License-Identifier: Apache-2.0
"""The runtime needs the base dependencies only, and imports nothing of the exporter."""

from __future__ import annotations

import ast
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).resolve().parents[1]
# The folders of fastmmoe that a base installation uses; plugins says where the native library is.
BASE_PACKAGES = ("runtime", "plugins")
SOURCES = [path for package in BASE_PACKAGES for path in sorted((REPOSITORY / package).rglob("*.py"))]

# Of the first name of an import: the base dependencies and the package itself.
ALLOWED = {"numpy", "PIL", "tokenizers", "msgspec", "fastmmoe"}
# What runs the graphs comes with an extra: only these modules name it, and only the first three need it. The first
# takes onnx for what a report looks at inside of a graph.
BACKEND = "fastmmoe.runtime.backends.onnxruntime"
BACKENDS = (BACKEND, "fastmmoe.runtime.backends.onnxruntime_cuda", "fastmmoe.runtime.backends.device_memory")
# Polygraphy imports it, and nothing else does.
PLUGIN = "fastmmoe.runtime.interop.polygraphy_runner"
OPTIONAL = {
    BACKEND: {"onnxruntime", "onnx"},
    "fastmmoe.runtime.backends.device_memory": {"onnxruntime"},
    "fastmmoe.runtime.backends.native": {"onnxruntime"},
    "fastmmoe.runtime.cli.completion": {"shtab"},
    PLUGIN: {"polygraphy"},
    "fastmmoe.runtime.hub": {"huggingface_hub"},
}
# tokenizers brings huggingface_hub; it may lie there, but nothing of it may load.
UNWANTED = ("onnxruntime", "torch", "transformers", "huggingface_hub", "onnx", "onnx_ir", "onnxscript", "safetensors")

IMPORT_ALL = """
import importlib, sys
sys.path.insert(0, sys.argv[1])
for name in sys.argv[2].split(","):
    importlib.import_module(name)
print("\\n".join(sorted(sys.modules)))
"""


def module_name(path: Path) -> str:
    """runtime/cli/main.py -> fastmmoe.runtime.cli.main"""
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(("fastmmoe", *(part for part in parts if part != "__init__")))


def base_distributions() -> list[importlib.metadata.Distribution]:
    """What an installation without extras brings: the base dependencies and theirs, as installed here."""
    found: dict[str, importlib.metadata.Distribution] = {}
    pending = [Requirement(text) for text in importlib.metadata.requires("fastmmoe") or []]
    while pending:
        requirement = pending.pop()
        wanted = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        name = canonicalize_name(requirement.name)
        if not wanted or name in found:
            continue
        distribution = importlib.metadata.distribution(name)
        found[name] = distribution
        pending += [Requirement(text) for text in distribution.requires or []]
    return list(found.values())


def link_base_install(site: Path) -> None:
    """Link the files of a base installation into an empty folder; of fastmmoe only what the runtime may use."""
    for distribution in base_distributions():
        for top in {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}:
            (site / top).symlink_to(Path(str(distribution.locate_file(top))))
    (site / "fastmmoe").mkdir()
    (site / "fastmmoe" / "__init__.py").symlink_to(REPOSITORY / "fastmmoe" / "__init__.py")
    for package in BASE_PACKAGES:
        (site / "fastmmoe" / package).symlink_to(REPOSITORY / package)


def imported_names(path: Path) -> set[str]:
    """Every module an import statement of the file names, also inside functions and under TYPE_CHECKING."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def import_in_base_install(site: Path, names: list[str]) -> subprocess.CompletedProcess[str]:
    link_base_install(site)
    command = [sys.executable, "-I", "-S", "-c", IMPORT_ALL, str(site), ",".join(names)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_runtime_imports_with_the_base_dependencies_alone(tmp_path: Path) -> None:
    names = [name for path in SOURCES if (name := module_name(path)) not in (*BACKENDS, PLUGIN)]
    result = import_in_base_install(tmp_path, names)
    assert result.returncode == 0, result.stderr
    loaded = set(result.stdout.split())
    assert set(names) <= loaded
    assert not {name for name in loaded if name.split(".")[0] in UNWANTED}


@pytest.mark.parametrize("backend", BACKENDS)
def test_backend_without_onnx_runtime_names_the_line_that_installs_it(backend: str, tmp_path: Path) -> None:
    result = import_in_base_install(tmp_path, [backend])
    assert result.returncode != 0
    last = result.stderr.splitlines()[-1]
    assert last.startswith("fastmmoe.runtime.errors.BackendMissing: ONNX Runtime is not installed for "), last
    assert "pip install 'fastmmoe[cpu]'" in last


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_runtime_module_names_only_base_dependencies(path: Path) -> None:
    allowed = ALLOWED | OPTIONAL.get(module_name(path), set())
    for name in imported_names(path):
        first, *rest = name.split(".")
        assert first in allowed or first in sys.stdlib_module_names, name
        assert first != "fastmmoe" or rest[0] in {*BASE_PACKAGES, "__version__"}, name


@pytest.mark.slow
def test_footprint_of_a_base_install() -> None:
    result = subprocess.run([sys.executable, "scripts/measure_footprint.py"], cwd=REPOSITORY, check=False)
    assert result.returncode == 0
