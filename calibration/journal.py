# SPDX-License-Identifier: Apache-2.0
"""The journal of a search: a JSON object a line; what a crash or a full disk left of the last one is cut off."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from fastmmoe.runtime.errors import InvalidRequest


class _Record(msgspec.Struct):
    op_code: int


def mend_journal(journal: Path) -> str:
    """Cut off what follows the last whole record: a part of one, or the zeros that a file system put there.

    Returns:
        One line on what was dropped, "" where nothing was.
    Raises:
        InvalidRequest: whole records follow a damaged one. The search depends on every one of them.
    """
    if not journal.is_file():
        return ""
    *lines, rest = journal.read_bytes().split(b"\n")
    are_whole = [_is_record(line) for line in lines]
    good = are_whole.index(False) if False in are_whole else len(lines)
    if good == len(lines) and not rest:
        return ""
    if any(are_whole[good:]):
        raise InvalidRequest(
            f"{journal}:{good + 1}: damaged, and whole records follow: expected a JSON object a line; remove the file, "
            f"or cut it off before that line to go on with the {good} records in front of it"
        )
    end = sum(len(line) + 1 for line in lines[:good])
    dropped = journal.stat().st_size - end
    os.truncate(journal, end)
    return f"{journal}: dropped a partial last record of {dropped} bytes; the {good} records before it are used"


def _is_record(line: bytes) -> bool:
    try:
        msgspec.json.decode(line, type=_Record)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return True
