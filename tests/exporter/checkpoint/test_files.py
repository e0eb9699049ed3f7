# SPDX-License-Identifier: Apache-2.0
"""The directory of a checkpoint and its JSON files: what is refused, in one line that names the file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from fastmmoe.exporter.checkpoint.files import (
    SMALL_FILES,
    absent,
    check_directory,
    check_small_file,
    parse_object,
    read_bytes,
)
from fastmmoe.runtime.errors import UnsupportedModel
from tests.support.checkpoint_files import refusal


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory with a config.json, which is all that is looked for here."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "test"}')
    check_directory(tmp_path / "model")
    return tmp_path / "model"


def test_a_path_that_is_missing_or_a_file(directory: Path) -> None:
    assert "no such directory; give the directory of a checkpoint" in refusal(check_directory, directory / "absent")
    assert "not a directory; give the directory that holds config.json" in refusal(
        check_directory, directory / "config.json"
    )


def test_a_hub_id_is_told_to_be_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    message = refusal(check_directory, Path("deepseek-ai/deepseek-vl2-tiny"))
    assert "hf download deepseek-ai/deepseek-vl2-tiny --local-dir DIR" in message
    assert "nothing is downloaded here" in message


def test_a_directory_without_config(directory: Path) -> None:
    (directory / "config.json").unlink()
    assert (
        refusal(check_directory, directory) == f"{directory}: no config.json in it; give the directory of a checkpoint"
    )


@pytest.mark.parametrize("names", [("adapter_config.json",), ("adapter_config.json", "adapter_model.safetensors")])
@pytest.mark.parametrize("is_alone", [True, False])
def test_adapters(directory: Path, names: tuple[str, ...], is_alone: bool) -> None:
    """Alone or beside a model: nothing is added to the weights, so nothing may look as if it were."""
    if is_alone:
        (directory / "config.json").unlink()
    for name in names:
        (directory / name).write_text("{}")
    message = refusal(check_directory, directory)
    assert "adapter_config.json is an adapter (LoRA) for another checkpoint" in message
    assert message.endswith(f"remove {' and '.join(names)}")


@pytest.mark.parametrize("name", SMALL_FILES)
@pytest.mark.parametrize("kind", ["pipe", "directory"])
def test_what_is_no_regular_file(directory: Path, name: str, kind: str) -> None:
    """A pipe that nobody writes to would be waited for without end."""
    (directory / name).unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(directory / name)
    else:
        (directory / name).mkdir()
    what = "a pipe, socket or device" if kind == "pipe" else "a directory"
    assert (
        refusal(check_directory, directory) == f"{directory / name}: {what}, expected a regular file; download it again"
    )


@pytest.mark.parametrize("name", SMALL_FILES)
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "an empty file; download it again"),
        (b"version https://git-lfs", "a Git LFS pointer, not the file; fetch it with: git lfs pull"),
    ],
)
def test_files_that_stand_for_others(directory: Path, name: str, content: bytes, expected: str) -> None:
    (directory / name).write_bytes(content)
    assert refusal(check_directory, directory) == f"{directory / name}: {expected}"


def test_a_file_that_begins_almost_like_a_pointer(directory: Path) -> None:
    (directory / "tokenizer.json").write_bytes(b"version")
    check_directory(directory)


def test_why_a_file_is_not_there(directory: Path) -> None:
    file = directory / "a.safetensors"
    assert absent(file, "otherwise") == "otherwise"
    with pytest.raises(UnsupportedModel, match=r"a\.safetensors: no such file$"):
        check_small_file(file)
    (directory / "0a1b.incomplete").write_bytes(b"")
    interrupted = f"{file}: no such file, and 0a1b.incomplete shows an interrupted download; run it again"
    assert absent(file, "otherwise") == interrupted
    file.symlink_to("../blobs/0a1b")
    assert absent(file, "otherwise").startswith(f"{file}: a link to ../blobs/0a1b, which is not there: the download")


def test_a_part_of_a_file(directory: Path) -> None:
    file = directory / "config.json"
    assert read_bytes(file) == b'{"model_type": "test"}'
    assert read_bytes(file, 5, offset=2) == b"model"
    assert read_bytes(file, 5, offset=20) == b'"}'


def test_an_unreadable_file(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UnsupportedModel) as raised:
        read_bytes(directory / "config.json")
    assert str(raised.value) == f"{directory / 'config.json'}: cannot be read (Permission denied)"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b'{"a": 1', "the header is not valid JSON"),
        (b"\xff\xfe", "the header is not valid JSON ('utf-8' codec"),
        (b"[1, 2]", "the header holds a JSON list, expected an object"),
        (b"null", "the header holds a JSON NoneType, expected an object"),
        (b'{"a": 1, "a": 2}', "key 'a' is given twice"),
        (rb'{"a": ["\uD800"]}', "surrogates not allowed"),
        (rb'{"\udfff": 1}', "surrogates not allowed"),
        (b'{"a":' * 100_000, "the header is not valid JSON"),
    ],
)
def test_what_is_no_object(text: bytes, expected: str) -> None:
    with pytest.raises(UnsupportedModel) as raised:
        parse_object(text, Path("a.safetensors"), "header")
    message = str(raised.value)
    assert message.startswith("a.safetensors: damaged or incomplete: the header")
    assert expected in message and message.endswith("; download it again")
    assert "\n" not in message and len(message) < 400


def test_a_pair_of_surrogates_is_a_character() -> None:
    assert parse_object(rb'{"a": "\ud83d\ude00"}', Path("config.json")) == {"a": "\U0001f600"}
