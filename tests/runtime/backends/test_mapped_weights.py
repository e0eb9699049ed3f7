# SPDX-License-Identifier: Apache-2.0
"""Pages of mapped weights, in this process."""

from __future__ import annotations

import mmap
import re
from pathlib import Path

import pytest

from fastmmoe.runtime.backends import mapped_weights
from fastmmoe.runtime.backends.mapped_weights import map_weights

PAGES = 300


@pytest.fixture
def mapped(tmp_path: Path) -> mmap.mmap:
    """A file of some pages, mapped and not touched."""
    (tmp_path / "bundle").mkdir()
    file = tmp_path / "bundle" / "language_model.data"
    file.write_bytes(bytes(PAGES * mmap.PAGESIZE))
    with file.open("rb") as opened:
        return mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ)


def resident(file: Path) -> int:
    """Bytes of a mapped file that this process has."""
    text = Path("/proc/self/smaps").read_text("utf-8", "surrogateescape")
    found = re.search(rf" {re.escape(str(file))}\n(?:.*\n)*?Rss: +(\d+) kB", text)
    assert found
    return 1024 * int(found[1])


def test_all_pages_are_this_process_own(mapped: mmap.mmap, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    assert resident(bundle / "language_model.data") == 0
    assert map_weights(bundle) == PAGES * mmap.PAGESIZE
    assert resident(bundle / "language_model.data") == PAGES * mmap.PAGESIZE


def test_files_of_other_directories_are_left_alone(mapped: mmap.mmap, tmp_path: Path) -> None:
    for other in ("bund", "bundle2"):
        (tmp_path / other).mkdir()
        assert map_weights(tmp_path / other) == 0
    assert resident(tmp_path / "bundle" / "language_model.data") == 0


@pytest.mark.parametrize("memory", [None, {"MemAvailable": PAGES * mmap.PAGESIZE - 1}])
def test_without_room_nothing_is_read(
    mapped: mmap.mmap, tmp_path: Path, memory: dict[str, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped_weights, "read_memory", lambda root: memory)
    assert map_weights(tmp_path / "bundle") == 0
    assert resident(tmp_path / "bundle" / "language_model.data") == 0


def test_systems_without_the_call_or_maps(mapped: mmap.mmap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped_weights, "_POPULATE_READ", 9999)
    assert map_weights(tmp_path / "bundle") == 0
    assert map_weights(tmp_path / "bundle", root=tmp_path) == 0
