# SPDX-License-Identifier: Apache-2.0
"""An open weight file: mapped, read into a buffer, or copied into another file by the system.

A mapping of a file that is cut off ends the process at its pages. What a long work reads goes through `read` and
`copy`, which say so instead.
"""

from __future__ import annotations

import errno
import mmap
import os
import sys
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

from fastmmoe.exporter.checkpoint.weight_files import FileState, TensorInfo
from fastmmoe.runtime.errors import UnsupportedModel

if TYPE_CHECKING:
    import torch

_CANNOT_COPY = (errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM)
"""Of another file system, an old kernel, a kind of file, or a sandbox without this call."""
_BUFFER = 4 << 20
# Without a reservation Linux maps more than memory and swap hold. The mmap module has its name from Python 3.13 on.
_PRIVATE = mmap.MAP_PRIVATE | (0x4000 if sys.platform == "linux" else 0)


class OpenFile:
    """A weight file, open as it was when its header was read.

    Raises:
        UnsupportedModel: the file changed after its header was read.
    """

    def __init__(self, path: Path, expected: FileState) -> None:
        self.path, self._expected = path, expected
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise self._changed(error.strerror or str(error)) from error
        weakref.finalize(self, os.close, self._descriptor)
        self._mapping: mmap.mmap | None = None
        self._buffer: memoryview | None = None
        self.check()

    def check(self) -> None:
        """Raise UnsupportedModel where the file is another one than its header was read from, or was written to."""
        found, before = os.fstat(self._descriptor), self._expected
        # A link or a permission more changes nothing that is read.
        now = found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
        if now != (before.device, before.inode, before.size, before.written_ns):
            raise self._changed(f"{found.st_size} bytes, {before.size} when its header was read, and written to since")

    def mapped(self, info: TensorInfo) -> torch.Tensor:
        """A tensor of the file, sharing its pages; what is written to it stays in this process.

        Raises:
            MemoryError: the process may not map as much (ulimit -v).
        """
        import torch

        dtype = torch_dtype(info.dtype)
        if not self._expected.size or 0 in info.shape:
            return torch.empty(info.shape, dtype=dtype)
        if self._mapping is None:
            try:
                self._mapping = mmap.mmap(self._descriptor, 0, flags=_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
            except OSError as error:
                raise MemoryError(f"{self.path}: {error.strerror}") from error
        count = torch.Size(info.shape).numel()
        return torch.frombuffer(self._mapping, dtype=dtype, count=count, offset=info.offset).view(info.shape)

    def read(self, buffer: memoryview, offset: int) -> None:
        """Fill the buffer with the file's bytes from an offset on.

        Raises:
            UnsupportedModel: the file ends before.
        """
        done = 0
        while done < len(buffer):
            count = os.preadv(self._descriptor, [buffer[done:]], offset + done)
            if count == 0:
                raise self._cut_off()
            done += count

    def copy(self, offset: int, size: int, target: int, at: int) -> None:
        """Copy bytes into an open file at an offset: by the system where it can, else through one small buffer.

        Args:
            target: a descriptor that may be written to.
        Raises:
            UnsupportedModel: the file ends before. OSError: they cannot be written.
        """
        done = 0
        if not hasattr(os, "copy_file_range"):
            self._copy_by_hand(offset, size, target, at)
            return
        while done < size:
            try:
                count = os.copy_file_range(self._descriptor, target, size - done, offset + done, at + done)
            except OSError as error:
                if error.errno not in _CANNOT_COPY:
                    raise
                self._copy_by_hand(offset + done, size - done, target, at + done)
                return
            if count == 0:
                # The file's end, or a file system that only says that it can: reading tells.
                self._copy_by_hand(offset + done, size - done, target, at + done)
                return
            done += count

    def _copy_by_hand(self, offset: int, size: int, target: int, at: int) -> None:
        if self._buffer is None:
            self._buffer = memoryview(bytearray(_BUFFER))
        for start in range(0, size, _BUFFER):
            part = self._buffer[: min(_BUFFER, size - start)]
            self.read(part, offset + start)
            write_all(target, part, at + start)

    def _cut_off(self) -> UnsupportedModel:
        return self._changed(f"{os.fstat(self._descriptor).st_size} bytes, {self._expected.size} expected")

    def _changed(self, what: str) -> UnsupportedModel:
        return UnsupportedModel(
            f"{self.path} cannot be read any more ({what}); the file changed after it was opened: start again"
        )


def write_all(target: int, data: memoryview, at: int) -> None:
    """Write bytes at an offset, all of them."""
    done = 0
    while done < len(data):
        done += os.pwrite(target, data[done:], at + done)


def torch_dtype(dtype: str) -> torch.dtype:
    """Torch's type of a dtype in safetensors' spelling that is read."""
    import torch

    return {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[dtype]
