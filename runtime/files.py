# SPDX-License-Identifier: Apache-2.0
"""Files that appear complete or not at all, and scratch directories that a killed process does not leave for good."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from fastmmoe.runtime.errors import FastmmoeError, InvalidRequest
from fastmmoe.runtime.types import Say

SCRATCH_SUFFIX = ".fastmmoe-unfinished"
LOCK = "lock"
RESUMABLE = "journal"
"""In a scratch directory that a later run goes on with."""
# Whoever removes what a killed process left holds the lock for a moment; a running one holds it to its end.
LOCK_SECONDS = 1.0

_OF_SIZE = (None, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class WriteFailed(FastmmoeError, OSError):
    """A file could not be written: a full disk, a quota, a limit of file sizes, a failing or read-only file system."""


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file, whole or not at all; an old one is replaced, its folder is made.

    Raises:
        WriteFailed: see `replacing`. OSError: its folder cannot be made.
    """
    path.absolute().parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, len(data)) as file:
        file.write(data)


@contextmanager
def replacing(path: Path, expected: int) -> Iterator[IO[bytes]]:
    """A new file to write, which takes the place of an old one in the end, whole or not at all.

    A symbolic link stays one: its target is written. An old file's permissions are kept.

    Args:
        expected: see `writing`.
    Raises:
        WriteFailed: see `check_replaceable`, and there.
    """
    real = check_replaceable(path)
    # No name that anything else has, and none that is too long where the file's own is not.
    scratch = real.with_name(f".{secrets.token_hex(8)}.partial")
    with writing(scratch, expected, shown=path):
        try:
            with scratch.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if real.exists():
                scratch.chmod(stat.S_IMODE(real.stat().st_mode))
            scratch.replace(real)
        finally:
            # What a disk does not take it may not give back either; that would hide the first error.
            with suppress(OSError):
                scratch.unlink(missing_ok=True)


def real_path(path: Path) -> Path:
    """The absolute path, links followed, of a directory that libraries are to open.

    Raises:
        InvalidRequest: the folder that the process works in is gone, or a name is not UTF-8, which they take alone.
    """
    try:
        real = os.path.realpath(path)
    except FileNotFoundError:
        raise InvalidRequest(f"{path}: the folder you work in was removed: change to one that is there") from None
    try:
        real.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(f"{path}: its name, or that of a folder above it, is not UTF-8: rename it") from None
    return Path(real)


def check_parent(given: Path) -> Path:
    """The absolute path, links followed, of a directory that a user wants to be made.

    Raises:
        InvalidRequest: the folder it is to be in is not there, as of a mistyped path; see `real_path`.
    """
    path = real_path(given)
    if not path.parent.is_dir():
        missing = next(p for p in reversed(path.parents) if not p.is_dir())
        raise InvalidRequest(f"{given}: {missing} is not a directory: make it first, or correct the path")
    return path


def check_beside(directory: Path, out: Path) -> None:
    """Raise InvalidRequest where files are to be written into a bundle, which holds what was exported alone."""
    inner, outer = real_path(out), real_path(directory)
    if outer in (inner, *inner.parents):
        raise InvalidRequest(f"{out}: inside the bundle {directory}, which takes no other files; give another place")


def check_replaceable(path: Path) -> Path:
    """The path, links followed, of a file that may be written; asked before the work that fills it.

    Raises:
        WriteFailed: something other than a regular file is there, or its folder is missing or takes no files.
    """
    real = Path(os.path.realpath(path))
    problem = ""
    if os.path.lexists(real) and not real.is_file():
        problem = "a directory is there" if real.is_dir() else "what is there is no regular file"
    elif not real.parent.is_dir():
        problem = f"{real.parent} is no directory"
    elif not os.access(real.parent, os.W_OK | os.X_OK):
        problem = f"{real.parent} takes no files of yours"
    if problem:
        raise WriteFailed(f"{path}: cannot be written: {problem}; give another place")
    return real


def check_new(directory: Path, path: Path) -> Path:
    """`check_replaceable` of a file that a command writes about a bundle, whose own files it is not to replace.

    Raises:
        InvalidRequest: see `check_beside`. WriteFailed: see `check_replaceable`.
    """
    check_beside(directory, path)
    return check_replaceable(path)


@contextmanager
def writing(path: Path, expected: int, *, shown: Path | None = None) -> Iterator[None]:
    """Have an error of the system while a file is written say which file, and what there is no room for.

    Args:
        path: where it is written.
        expected: its bytes in the end, or the fewest known.
        shown: what the user calls it.
    Raises:
        WriteFailed: instead of OSError.
    """
    try:
        yield
    except WriteFailed:
        raise
    except OSError as error:
        raise WriteFailed(f"{shown or path}: cannot be written: {_reason(path, expected, error)}") from error


def _reason(path: Path, expected: int, error: OSError) -> str:
    """What the system says. NumPy says how short a write was cut, and not why."""
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Part of the file may be there, or be gone by now.
    room = (path.stat().st_size if path.is_file() else 0) + free_bytes(path)
    if error.errno in (None, errno.ENOSPC) and room < expected:
        missing = size_text(expected - room)
        return f"{os.strerror(errno.ENOSPC)}: it takes {size_text(expected)}, {missing} more than there is room for"
    if error.errno == errno.ENOSPC and _lacks_entries(path):
        return f"{os.strerror(errno.ENOSPC)} for another file, though for its bytes (df -i): remove files"
    if error.errno in (None, errno.EFBIG) and 0 <= limit < expected:
        return f"it takes {size_text(expected)}, and files may have {size_text(limit)} here (ulimit -f)"
    of_size = f": it takes {size_text(expected)}" if error.errno in _OF_SIZE else ""
    return f"{error.strerror or error}{of_size}"


def _lacks_entries(path: Path) -> bool:
    """Whether a file system with a limit of files is full of them."""
    found = os.statvfs(_nearest_directory(path))
    return found.f_files > 0 and found.f_favail == 0


def cache_folder() -> Path | None:
    """Where this user's caches of fastmmoe are, `$XDG_CACHE_HOME/fastmmoe`; None without a home."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    try:
        root = Path(cache) if Path(cache).is_absolute() else Path.home() / ".cache"
    except RuntimeError:
        return None
    return root / "fastmmoe"


def free_bytes(path: Path) -> int:
    """Room on the disk of a path that may not be there yet."""
    return shutil.disk_usage(_nearest_directory(path)).free


def _nearest_directory(path: Path) -> Path:
    return next((place for place in (path, *path.absolute().parents) if place.is_dir()), Path("/"))


def size_text(count: int) -> str:
    """A number of bytes for people."""
    if count < 100_000:
        return f"{count} bytes"
    return f"{count / 1e9:.1f} GB" if count >= 1e10 else f"{count / 1e6:.1f} MB"


def sync(path: Path) -> None:
    """Have a file's contents, or a directory's entries, on the disk before this returns."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def scratch_name(name: str) -> str:
    """Name of the scratch directory for what becomes `name`."""
    return f".{name}{SCRATCH_SUFFIX}"


@contextmanager
def scratch_directory(
    directory: Path, name: str, say: Say, keep: tuple[type[BaseException], ...] = ()
) -> Iterator[Path]:
    """A hidden directory for what becomes `name` in the directory: one at a time, removed however the work ends.

    A lock in it tells a running process from a killed one, whose directory is emptied, with a word, and used.

    Args:
        say: is called with a line where something was removed.
        keep: with these the directory stays if it is resumable, and what is in it at first is left to the caller.
    Raises:
        InvalidRequest: another process works on it.
    """
    path = directory / scratch_name(name)
    lock = _wait_for_lock(path)
    if lock is None:
        raise InvalidRequest(
            f"{directory / name}: another process is writing it: wait for that one, or give another place"
        )
    is_kept = False
    try:
        if not keep and _empty(path):
            say(_removed(path))
        yield path
    except keep:
        is_kept = is_resumable(path)
        raise
    finally:
        if is_kept:
            os.close(lock)
        else:
            _remove(path, lock)


def is_resumable(path: Path) -> bool:
    """Whether a scratch directory has something that a later run goes on with: a journal alone says nothing."""
    return (path / RESUMABLE).is_file() and any(entry.is_dir() for entry in path.iterdir())


def remove_left_scratch(directory: Path, say: Say, name: str | None = None) -> None:
    """Remove scratch directories of killed processes, with a word for each.

    Those of running ones stay, and resumable ones, but for that of what would become `name`.
    """
    for path in sorted(directory.glob(f".*{SCRATCH_SUFFIX}")):
        if is_resumable(path) and (name is None or path.name != scratch_name(name)):
            continue
        lock = _try_lock(path, 0) if _is_ours(path) else None
        if lock is not None:
            _remove(path, lock)
            say(_removed(path))


def _removed(path: Path) -> str:
    return f"removed {path}, which a killed process left"


def _is_ours(path: Path) -> bool:
    """Whether it is a directory of this user: others may have put a link or a folder in its place."""
    with suppress(FileNotFoundError):
        found = path.lstat()
        return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
    return False


def _wait_for_lock(path: Path) -> int | None:
    """Make the scratch directory, or take one that is left, and lock it; None where it stays locked."""
    end = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            path.mkdir(mode=0o700)
        except FileExistsError:
            if path.exists() and not _is_ours(path):
                raise InvalidRequest(f"{path}: needed for unfinished files, and not this user's: remove it") from None
        lock = _try_lock(path, os.O_CREAT)
        if lock is not None or time.monotonic() > end:
            return lock
        time.sleep(0.05)


def _try_lock(path: Path, flags: int) -> int | None:
    """The locked descriptor of a scratch directory's lock, None where another process has it or has just removed it."""
    try:
        lock = os.open(path / LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | flags, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(lock), (path / LOCK).stat()):
            return lock
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(lock)
        raise
    os.close(lock)
    return None


def _empty(path: Path) -> bool:
    """Remove everything but the lock; whether there was anything."""
    entries = [entry for entry in path.iterdir() if entry.name != LOCK]
    for entry in entries:
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    return bool(entries)


def _remove(path: Path, lock: int) -> None:
    try:
        remove_own_scratch(path)
    finally:
        os.close(lock)


def remove_own_scratch(path: Path) -> None:
    """Remove a scratch directory that this process has locked, its lock last: what an interrupt leaves is found again.

    With the process the lock ends, so that one that ends at once calls this before.
    """
    with suppress(FileNotFoundError):
        _empty(path)
        (path / LOCK).unlink()
        path.rmdir()
