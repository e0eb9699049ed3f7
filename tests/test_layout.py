# SPDX-License-Identifier: Apache-2.0
"""The rooms of the packages: who may import whom, and how large a function and a file may be."""

from __future__ import annotations

import ast
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = ("runtime", "exporter", "calibration")
SOURCES = [path for package in PACKAGES for path in sorted((REPOSITORY / package).rglob("*.py"))]
FAMILY_WORDS = ("deepseek", "internvl")
FAMILY_LISTS = {
    "exporter/checkpoint/known_keys.py",
    "exporter/models/configs.py",
    "exporter/models/family.py",
    "exporter/pruning/settings.py",
    "runtime/request/answers.py",
    "runtime/request/config.py",
    "runtime/request/family.py",
    "runtime/request/prompts.py",
}
SCRIPTS = sorted((REPOSITORY / "scripts").rglob("*.py"))
CXX = [path for ending in ("h", "cpp", "cuh", "cu") for path in sorted((REPOSITORY / "plugins").rglob(f"*.{ending}"))]
MOST_LINES, MOST_FUNCTION_LINES = 400, 50
# Packages whose modules each have a test file of their name, in the same room of tests.
MIRRORED = ("runtime", "exporter")
# Aliases of types alone.
NOTHING_TO_TEST = ("runtime/types.py",)


def room_of(module: str) -> str:
    """The folder of a module such as runtime.bundle.manifest; a module that lies in a package itself is its own."""
    path = REPOSITORY / module.replace(".", "/")
    return module if path.is_dir() or module.count(".") < 2 else module.rpartition(".")[0]


@cache
def imports(path: Path) -> frozenset[str]:
    """The modules and names of ours that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module is not None and node.module.startswith("fastmmoe."):
            module = node.module.removeprefix("fastmmoe.")
            is_folder = (REPOSITORY / module.replace(".", "/")).is_dir()
            found |= {f"{module}.{alias.name}" for alias in node.names} if is_folder else {module}
    return frozenset(found)


def rooms() -> dict[str, set[str]]:
    """Room -> the rooms that it imports."""
    graph: dict[str, set[str]] = {}
    for path in SOURCES:
        module = ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")
        own = room_of(module)
        theirs = {room_of(name) for name in imports(path)}
        # An operator's folder is a part of the folder of operators.
        graph.setdefault(own, set()).update(room for room in theirs if not f"{room}.".startswith(f"{own}."))
    return graph


def test_no_room_imports_itself_in_a_circle() -> None:
    try:
        list(TopologicalSorter(rooms()).static_order())
    except CycleError as error:
        pytest.fail(f"rooms import each other: {' <- '.join(error.args[1])}")


@pytest.mark.parametrize(
    ("package", "forbidden"), [("runtime", ("exporter", "calibration")), ("exporter", ("calibration",))]
)
def test_nothing_imports_upwards(package: str, forbidden: tuple[str, ...]) -> None:
    for path in SOURCES:
        if path.relative_to(REPOSITORY).parts[0] == package:
            wrong = [name for name in imports(path) if name.split(".")[0] in forbidden]
            assert not wrong, f"{path} imports {wrong}"


def test_only_the_backend_knows_onnx_runtime() -> None:
    users = [p for p in SOURCES if "import onnxruntime" in p.read_text(encoding="utf-8")]
    assert {str(p.relative_to(REPOSITORY).parent) for p in users} == {"runtime/backends"}


def strings_in(path: Path) -> set[str]:
    """The strings of a file's code."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def names_in(path: Path) -> set[str]:
    """Names and strings without blanks of a file's code, lower case."""
    found = {*imports(path), *(text for text in strings_in(path) if " " not in text)}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.Name, ast.FunctionDef, ast.alias)):
            found.add(node.id if isinstance(node, ast.Name) else node.name)
    return {name.lower() for name in found}


def test_only_its_own_files_and_the_lists_of_families_name_one() -> None:
    for path in SOURCES:
        if str(path.relative_to(REPOSITORY)) not in FAMILY_LISTS and not path.name.startswith(FAMILY_WORDS):
            named = [name for name in names_in(path) if any(word in name for word in FAMILY_WORDS)]
            assert not named, f"{path} asks for a family: {sorted(named)}"


def test_names_of_methods_and_rules_are_written_once() -> None:
    for path in SOURCES:
        if str(path.relative_to(REPOSITORY)) != "runtime/method/policy.py":
            found = {"fastv", "sparsevlm", "mlerp", "preserve_sum"} & strings_in(path)
            assert not found, f"{path}: take the names of runtime/method/policy.py for {sorted(found)}"


def test_files_and_functions_are_short() -> None:
    for path in (*SOURCES, *SCRIPTS, *CXX):
        text = path.read_text(encoding="utf-8")
        assert text.count("\n") < MOST_LINES, path
        for node in ast.walk(ast.parse(text)) if path.suffix == ".py" else ():
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert node.end_lineno is not None
                assert node.end_lineno - node.lineno + 1 < MOST_FUNCTION_LINES, f"{path}: {node.name}"


def test_every_module_has_a_test_file_of_its_name() -> None:
    """runtime/bundle/stamps.py: tests/runtime/bundle/test_stamps.py."""
    modules = [path.relative_to(REPOSITORY) for path in SOURCES if path.name != "__init__.py"]
    expected = {
        str(module): module.with_name(f"test_{module.name}") for module in modules if module.parts[0] in MIRRORED
    }
    missing = {name for name, file in expected.items() if not (REPOSITORY / "tests" / file).is_file()}
    assert missing == set(NOTHING_TO_TEST)
