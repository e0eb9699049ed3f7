# SPDX-License-Identifier: Apache-2.0
"""OUT of an export: looked at and reserved before the work, replaced after it only if it is what was seen.

Nothing that is not a bundle, and nothing that appeared or changed during the export, is ever removed.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from fastmmoe.runtime.bundle.manifest import ENGINES, GRAPHS, MANIFEST, TIMING_CACHE, FileEntry, engine_file
from fastmmoe.runtime.cli.command import uninterrupted
from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.files import (
    RESUMABLE,
    WriteFailed,
    check_parent,
    is_resumable,
    remove_left_scratch,
    remove_own_scratch,
    scratch_directory,
    sync,
    writing,
)
from fastmmoe.runtime.types import Say

_MOUNTS = Path("/proc/self/mountinfo")
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_CANNOT_EXCHANGE = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
_LEAVING = (KeyboardInterrupt, WriteFailed, MemoryError, InvalidRequest)
"""How an export may end that a later one goes on with: also one that is refused before it wrote, as the disk is still
full."""
_OCCUPIED = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)


class _FileList(msgspec.Struct):
    """Keys of every version of a manifest: enough to know a bundle of another version."""

    format: int
    fastmmoe_version: str
    files: dict[str, FileEntry]


@dataclass(frozen=True)
class _Bundle:
    """What tells the bundle that was seen from one that came later or was changed."""

    device: int
    inode: int
    changed_ns: int
    manifest_sha256: str


@dataclass
class Output:
    """A reserved output directory.

    Attributes:
        path: absolute, links followed.
        scratch: folder beside it, for the unfinished bundle.
        replaced: the bundle to replace; None = nothing, or an empty directory, was there.
        is_resumed: an interrupted export leaves what it wrote to the next one.
        is_published: whether the bundle is at its path.
    """

    path: Path
    scratch: Path
    replaced: _Bundle | None
    is_resumed: bool = False
    is_published: bool = False

    def abandon(self) -> str:
        """Remove what is unfinished as the process ends at once, or say what goes on with it, for `abandoning`."""
        if self.is_resumed and is_resumable(self.scratch):
            return _goes_on(self.scratch)
        remove_own_scratch(self.scratch)
        return ""

    def publish(self, staged: Path) -> None:
        """Move the finished bundle to its place, once it is on the disk.

        Raises:
            WriteFailed: the disk does not take what was written.
            InvalidRequest: something else is there now; it stays, and the error names where the bundle is instead.
        """
        for path in (*staged.iterdir(), staged):
            with writing(path, path.stat().st_size, shown=self.path / path.relative_to(staged)):
                sync(path)
        with uninterrupted():
            # From here on there is nothing to go on with.
            (self.scratch / RESUMABLE).unlink(missing_ok=True)
            self.is_published = self._place(staged) if self.replaced is None else self._replace(staged)
            if not self.is_published:
                beside = _free_name(self.path)
                staged.rename(beside)
                raise InvalidRequest(
                    f"{self.path}: appeared or changed during the export, so it was left as it is; the finished "
                    f"bundle is {beside}"
                )
            sync(self.path.parent)

    def _place(self, staged: Path) -> bool:
        """Whether the path was free: the system renames a directory onto nothing or an empty directory only."""
        try:
            staged.rename(self.path)
        except OSError as error:
            if error.errno not in _OCCUPIED:
                raise
            return False
        return True

    def _replace(self, staged: Path) -> bool:
        """Whether the bundle that was seen was still there, and gave way."""
        if not os.path.lexists(self.path):
            return self._place(staged)
        if _identity(self.path) != self.replaced:
            return False
        if _exchange(staged, self.path):
            if _identity(staged) == self.replaced:
                return True
            _exchange(staged, self.path)
            return False
        # Outside the scratch directory, so that not even a kill between the two steps loses the old bundle.
        aside = _free_name(self.path)
        self.path.rename(aside)
        if _identity(aside) != self.replaced or not self._place(staged):
            aside.rename(self.path)
            return False
        shutil.rmtree(aside)
        return True


def check_output(given: Path, model: Path, *, overwrite: bool, resume: bool = False, say: Say) -> Path:
    """Whether a bundle may be written there, as things are now; what killed processes left there is removed.

    Args:
        given: the directory as the user says it.
        model: the checkpoint's directory.
        overwrite: a bundle there may be replaced.
        resume: what an interrupted export left for it stays.
        say: is called with a line where something was removed.
    Returns:
        The absolute path, links followed.
    Raises:
        InvalidRequest: it cannot be the output, or is not to be replaced.
    """
    path = _resolve(given, model)
    remove_left_scratch(path.parent, say, None if resume else path.name)
    if overwrite:
        # Of a build of engines.
        remove_left_scratch(path, say)
    _look(path, overwrite)
    return path


@contextmanager
def reserve_output(given: Path, model: Path, *, overwrite: bool, resume: bool = False, say: Say) -> Iterator[Output]:
    """Keep the output directory for this export alone.

    Args:
        given, model, overwrite, resume, say: as in `check_output`.
    Raises:
        InvalidRequest: as `check_output`, or another export is writing it.
    """
    path = check_output(given, model, overwrite=overwrite, resume=resume, say=say)
    output = None
    try:
        with scratch_directory(path.parent, path.name, say, keep=_LEAVING if resume else ()) as scratch:
            output = Output(path, scratch, _look(path, overwrite), resume)
            yield output
    except KeyboardInterrupt:
        if output is not None and output.is_published:
            raise KeyboardInterrupt(f"{path} was written") from None
        if output is not None and is_resumable(output.scratch):
            raise KeyboardInterrupt(_goes_on(output.scratch)) from None
        raise
    except _LEAVING:
        if output is not None and is_resumable(output.scratch):
            say(f"once that is mended, {_goes_on(output.scratch)}")
        raise


def _goes_on(scratch: Path) -> str:
    return f"the same command goes on with what is in {scratch}"


def _resolve(given: Path, model: Path) -> Path:
    """The absolute path without links, refused where no bundle can be."""
    if given.is_symlink() and not given.exists():
        raise InvalidRequest(
            f"{given}: a symbolic link to {given.readlink()}, which is not there: remove it or give another place"
        )
    path = check_parent(given)
    if path in _own_places(path.anchor):
        raise InvalidRequest(f"{given}: is {path}, where you work or live: give the name of a new directory")
    if path == Path(os.path.realpath(model)):
        raise InvalidRequest(f"{given}: is the checkpoint itself; give another output directory")
    if _is_mount_point(path):
        raise InvalidRequest(f"{given}: a mount point, which cannot be replaced; give a directory inside it")
    return path


def _own_places(root: str) -> Iterator[Path]:
    """Directories that are never replaced. A user may have no home, and the folder to work in may be gone."""
    yield Path(root)
    for place in (Path.cwd, Path.home):
        with suppress(OSError, RuntimeError):
            yield place()


def _is_mount_point(path: Path) -> bool:
    """Also of a bind mount within one file system, which os.path.ismount does not see."""
    if os.path.ismount(path) or not _MOUNTS.is_file():
        return os.path.ismount(path)
    lines = _MOUNTS.read_bytes().splitlines()
    places = (re.sub(rb"\\(\d{3})", lambda m: bytes([int(m[1], 8)]), line.split(b" ")[4]) for line in lines)
    return os.fsencode(path) in places


def _look(path: Path, overwrite: bool) -> _Bundle | None:
    """The bundle that is there and may be replaced, None for nothing or an empty directory."""
    if not os.path.lexists(path) or (path.is_dir() and not any(path.iterdir())):
        return None
    problem = _why_no_bundle(path)
    if problem:
        raise InvalidRequest(f"{path} exists and is not a bundle ({problem}); give another output directory")
    if not overwrite:
        raise InvalidRequest(f"{path} exists; give another output directory, or --overwrite to replace it")
    return _identity(path)


def _why_no_bundle(path: Path) -> str:
    """Empty for a bundle of any version: a manifest, the files it names, and engines, each of which may be missing."""
    if not path.is_dir():
        return "it is a file"
    if (path / MANIFEST).exists() and not (path / MANIFEST).is_file():
        # A pipe would be waited for.
        return f"its {MANIFEST} is no regular file"
    try:
        listed = msgspec.json.decode((path / MANIFEST).read_bytes(), type=_FileList)
    except FileNotFoundError:
        return f"no {MANIFEST}"
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return f"its {MANIFEST} is not a bundle's"
    names = {MANIFEST, ENGINES, TIMING_CACHE, *listed.files, *(engine_file(graph) for graph in GRAPHS)}
    others = sorted(entry.name for entry in path.iterdir() if entry.name not in names or entry.is_dir())
    return f"it holds {others[0]}, which its {MANIFEST} does not name" if others else ""


def _identity(path: Path) -> _Bundle | None:
    try:
        found, manifest = path.lstat(), (path / MANIFEST).read_bytes()
    except OSError:
        return None
    return _Bundle(found.st_dev, found.st_ino, found.st_mtime_ns, hashlib.sha256(manifest).hexdigest())


def _free_name(path: Path) -> Path:
    """A name beside the path that nothing has."""
    names = (path.with_name(f"{path.name}-{number}") for number in range(2, 1 << 20))
    return next(name for name in names if not os.path.lexists(name))


def _exchange(a: Path, b: Path) -> bool:
    """Swap two paths in one step; False where the system or the file system cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    if libc.renameat2(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _CANNOT_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(b))
