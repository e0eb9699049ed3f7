# SPDX-License-Identifier: Apache-2.0
"""Sizes of models by directory and by name; what is shipped of the published ones is what their files say."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fastmmoe.exporter.fit.sizes import published_configs, read_sizes
from fastmmoe.runtime.errors import UnsupportedModel
from tests.support.golden import CHECKPOINTS
from tests.support.published_configs import FORMS

NAMES = {
    "deepseek-vl2-tiny": "tiny",
    "deepseek-vl2-small": "small",
    "deepseek-vl2": "base",
    "InternVL3_5-GPT-OSS-20B-A4B-Preview": "20B",
    "InternVL3_5-30B-A3B": "30B",
    "InternVL3_5-241B-A28B": "241B",
}
# Of tokens, which no size depends on.
IDS = {"bos_token_id", "eos_token_id", "pad_token_id", "stop_token_ids", "image_token_id"}


@pytest.mark.parametrize("name", NAMES)
def test_what_is_shipped_says_what_the_published_file_does(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(FORMS[NAMES[name]]()))
    ours, theirs = read_sizes(name), read_sizes(str(tmp_path))
    assert (ours.name, ours.config, ours.policy, ours.parameters) == (
        name,
        theirs.config,
        theirs.policy,
        theirs.parameters,
    )
    records = [msgspec.to_builtins(sizes.processor) for sizes in (ours, theirs)]
    first, second = ({key: value for key, value in record.items() if key not in IDS} for record in records)
    assert first == second


def test_every_published_model_is_tested() -> None:
    assert set(published_configs()) == set(NAMES)


def test_a_name_in_any_case_and_with_its_organisation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_sizes("deepseek-ai/DeepSeek-VL2-Tiny").name == "deepseek-vl2-tiny"
    # A directory of that name comes first.
    monkeypatch.chdir(tmp_path)
    shutil.copytree(Path(__file__).parents[3] / "exporter" / "demo_model", tmp_path / "deepseek-vl2-tiny")
    assert read_sizes("deepseek-vl2-tiny").config.num_hidden_layers == 8


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_weights_are_not_needed(name: str, checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """Everything but weights, and config.json with the processor's files alone."""
    whole = read_sizes(str(checkpoint(name)))
    for kept in ("*.json", "*config.json"):
        directory = tmp_path / kept.strip("*.") / name
        directory.mkdir(parents=True)
        for file in checkpoint(name).glob(kept):
            if "index" not in file.name:
                shutil.copy(file, directory)
        found = read_sizes(str(directory))
        assert (found.config, found.parameters, found.policy) == (whole.config, whole.parameters, whole.policy)


def config_of(tmp_path: Path, **values: Any) -> str:
    (tmp_path / "config.json").write_text(json.dumps(FORMS["tiny"]() | values))
    return str(tmp_path)


def test_what_an_export_refuses_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="supported are deepseek_vl_v2, internvl"):
        read_sizes(config_of(tmp_path, model_type="llava"))
    with pytest.raises(UnsupportedModel, match=r"no such directory; .*hf download"):
        read_sizes("somebody/llava")
    with pytest.raises(UnsupportedModel, match=r"config\.json"):
        read_sizes(str(tmp_path / ".."))
