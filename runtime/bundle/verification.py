# SPDX-License-Identifier: Apache-2.0
"""Opens bundles: every file is compared with the manifest's SHA-256 once, and again where it has changed since."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

from fastmmoe.runtime.bundle.manifest import (
    ENGINES,
    MANIFEST,
    Engines,
    FileEntry,
    Manifest,
    damaged_files,
    damaged_manifest,
    file_entry,
    is_bare_name,
    load_manifest,
    read_engines,
    read_manifest,
)
from fastmmoe.runtime.bundle.stamps import DIRECTORY, FileState, Stamp, state_of
from fastmmoe.runtime.errors import BundleMismatch
from fastmmoe.runtime.files import real_path
from fastmmoe.runtime.types import Say

PIECE_BYTES = 1 << 22
MOST_THREADS = 4
QUIET_SECONDS = 1.0
"""Hashing that takes no longer says nothing."""
REPORT_SECONDS = 5.0


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk, and the state that its files had when it was opened."""

    directory: Path
    manifest: Manifest
    states: dict[str, FileState]

    def check_unchanged(self) -> None:
        """Raise BundleMismatch where a file is not what it was when the bundle was opened."""
        for name, state in self.states.items():
            if state_of(self.directory / name) != state:
                raise BundleMismatch(f"{self.directory / name}: has changed while it was in use; try again")


def say_on_stderr(line: str) -> None:
    """Print what is no part of an answer."""
    print(line, file=sys.stderr, flush=True)


def open_bundle(directory: Path, *, verify: bool = True, say: Say = say_on_stderr) -> Bundle:
    """Read a bundle's manifest and make sure that its files are those that were exported.

    A stamp (`Stamp`) remembers files that were verified: only those that have changed since are read again.

    Args:
        verify: False compares names and sizes alone and takes an edited manifest.
        say: gets a line where reading takes longer than a second, and one where verification cannot be remembered.
    Raises:
        InvalidRequest: see `real_path`.
        BundleMismatch: see `read_manifest`, or a file is not the one that was exported.
    """
    real_path(directory)
    manifest = read_manifest(directory, verify=verify)
    names = (MANIFEST, *manifest.files)
    states = {name: _state(directory / name) for name in names}
    if not verify:
        return Bundle(directory, manifest, states)
    known = Stamp.of(directory).read()
    unknown = {
        name: entry for name, entry in manifest.files.items() if known.get(name) != states[name].key(entry.sha256)
    }
    began = time.time_ns()
    for damage in damaged_contents(directory, unknown, say):
        raise BundleMismatch(f"{damage}; copy the bundle or export again")
    opened = Bundle(directory, manifest, states)
    opened.check_unchanged()
    if unknown:
        reason = _remember(opened, began)
        if reason:
            say(
                f"{directory}: verified, which cannot be remembered ({reason}): each start reads all files; set "
                f"{DIRECTORY} to a directory of your own, or skip this (--no-verify)"
            )
    return opened


def verify_bundle(directory: Path, say: Say = say_on_stderr) -> Generator[str, None, Bundle]:
    """Check everything of a bundle, whatever its stamp says, and remember it where it is as it was exported.

    Yields:
        A line for each thing that was checked.
    Returns:
        The bundle.
    Raises:
        BundleMismatch: see `open_bundle`; where several files are damaged, it names them all.
    """
    real_path(directory)
    manifest = load_manifest(directory)
    wrong = [*damaged_files(directory, manifest), *damaged_manifest(directory, manifest)]
    states = {name: state_of(directory / name) for name in manifest.files}
    whole = {
        name: entry
        for name, entry in manifest.files.items()
        if is_bare_name(name) and (directory / name).is_file() and _has_size(states[name], entry)
    }
    began = time.time_ns()
    wrong += damaged_contents(directory, whole, say)
    if wrong:
        raise BundleMismatch("; ".join(wrong))
    size = sum(entry.bytes for entry in manifest.files.values())
    yield f"{len(manifest.files)} files, {size / 1e6:.1f} MB: SHA-256 as exported"
    opened = Bundle(directory, manifest, {name: state for name, state in states.items() if state is not None})
    opened.check_unchanged()
    _remember(opened, began)
    engines = read_engines(directory)
    if engines is not None:
        yield _verify_engines(directory, engines, say)
    return opened


def _verify_engines(directory: Path, engines: Engines, say: Say) -> str:
    manifest = file_entry(directory / MANIFEST).sha256
    if engines.bundle_sha256 != manifest:
        raise BundleMismatch(
            f"{directory / ENGINES}: built from a manifest of SHA-256 {engines.bundle_sha256[:12]}..., the bundle's is "
            f"{manifest[:12]}...; build the engines again: fastmmoe build {directory}"
        )
    missing = [name for name in engines.files if not is_bare_name(name) or not (directory / name).is_file()]
    wrong = [f"{directory / name}: missing" for name in missing] or damaged_contents(directory, engines.files, say)
    if wrong:
        raise BundleMismatch(f"{'; '.join(wrong)}; build the engines again: fastmmoe build {directory}")
    return f"engines of {engines.module} {engines.tensorrt_version}: SHA-256 as built, of this manifest"


def _has_size(state: FileState | None, entry: FileEntry) -> bool:
    return state is not None and state.size == entry.bytes


def _remember(opened: Bundle, began: int) -> str:
    """Write the stamp of a bundle whose files were hashed from this time on; say why it cannot be written, or ""."""
    files = opened.manifest.files
    settled = {name: opened.states[name] for name in files if opened.states[name].is_settled(began)}
    return Stamp.of(opened.directory).write({n: state.key(files[n].sha256) for n, state in settled.items()})


def leave_stamp(directory: Path, manifest: Manifest, hashed_at: int) -> None:
    """Remember a bundle whose files were hashed when they had been written, so that its first start need not.

    Args:
        hashed_at: time in nanoseconds at which hashing began; files that have changed since are not remembered.
    """
    states = {name: _state(directory / name) for name in manifest.files}
    is_older = {name: max(s.mtime, s.ctime) < hashed_at and s.is_settled(hashed_at) for name, s in states.items()}
    Stamp.of(directory).write({n: states[n].key(e.sha256) for n, e in manifest.files.items() if is_older[n]})


def damaged_contents(directory: Path, files: dict[str, FileEntry], say: Say) -> list[str]:
    """Which of these files differ from the size or the SHA-256 that they should have, a line each."""
    if not files:
        return []
    from concurrent.futures import ThreadPoolExecutor

    progress = _Progress(directory, sum(entry.bytes for entry in files.values()), say)
    # The largest first, so that no thread is left with it at the end.
    names = sorted(files, key=lambda name: -files[name].bytes)
    with ThreadPoolExecutor(max(1, min(MOST_THREADS, os.cpu_count() or 1, len(names)))) as pool:
        try:
            futures = {name: pool.submit(_sha256, directory / name, progress) for name in names}
            found = {name: future.result() for name, future in futures.items()}
        finally:
            # The threads end at their next piece, where they are interrupted.
            progress.is_over.set()
            pool.shutdown(cancel_futures=True)
    return [
        f"{directory / name}: damaged: SHA-256 {found[name][:12]}..., expected {files[name].sha256[:12]}..."
        for name in sorted(names)
        if found[name] != files[name].sha256
    ]


def _sha256(path: Path, progress: _Progress) -> str:
    import hashlib

    digest, piece = hashlib.sha256(), memoryview(bytearray(PIECE_BYTES))
    with path.open("rb", buffering=0) as file:
        while not progress.is_over.is_set() and (count := file.readinto(piece)):
            digest.update(piece[:count])
            progress.add(count)
    return digest.hexdigest()


class _Progress:
    """Counts bytes that several threads have read, and says how far they are where it takes long."""

    def __init__(self, directory: Path, total: int, say: Say) -> None:
        self._directory, self._total, self._say = directory, total, say
        self._done, self._start = 0, time.monotonic()
        self._next, self._lock = self._start + QUIET_SECONDS, threading.Lock()
        self.is_over = threading.Event()

    def add(self, count: int) -> None:
        with self._lock:
            self._done += count
            now = time.monotonic()
            if now < self._next or self._done == self._total:
                return
            self._next = now + REPORT_SECONDS
            left = (now - self._start) * (self._total - self._done) / self._done
            self._say(
                f"verifying {self._directory}: {self._done / 1e9:.2f} of {self._total / 1e9:.2f} GB, {left:.0f} s left "
                f"(once; --no-verify skips it)"
            )


def _state(path: Path) -> FileState:
    state = state_of(path)
    if state is None:
        raise BundleMismatch(f"{path}: missing; copy the whole bundle or export again")
    return state
