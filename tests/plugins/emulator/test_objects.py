# SPDX-License-Identifier: Apache-2.0
"""A source is compiled once for all libraries that have it, and again when anything that it reads has changed."""

from __future__ import annotations

import ctypes
from pathlib import Path

from tests.plugins.emulator.conftest import REPOSITORY, build_emulated

OBJECTS = REPOSITORY / ".build" / "emulator" / "objects"


def test_objects_are_kept_by_what_the_compiler_reads(tmp_path: Path) -> None:
    header, source = tmp_path / "value.h", tmp_path / "value.cpp"
    source.write_text(
        f'#include "{header}"\n'
        f'extern "C" __attribute__((visibility("default"))) const char* mark() {{ return "{tmp_path}"; }}\n'
        'extern "C" __attribute__((visibility("default"))) int value() { return VALUE; }\n',
        encoding="utf-8",
    )

    def build(value: int) -> set[tuple[str, int]]:
        """Names and inodes of the objects of this test."""
        header.write_text(f"#define VALUE {value}\n", encoding="utf-8")
        library = build_emulated(tmp_path / f"{value}-{len(list(tmp_path.iterdir()))}.so", source)
        assert ctypes.CDLL(str(library)).value() == value
        return {(o.name, o.stat().st_ino) for o in OBJECTS.glob("*.o") if str(tmp_path).encode() in o.read_bytes()}

    first = build(1)
    assert len(first) == 1
    both = build(2)
    assert len(both) == 2 and both > first
    assert build(1) == both
