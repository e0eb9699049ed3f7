# SPDX-License-Identifier: Apache-2.0
"""Files of a checkpoint: changing one, reading all that preprocessing needs, and tensors in another layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fastmmoe.exporter.checkpoint.config_reader import ConfigReader
from fastmmoe.exporter.processor import read_processor_config
from fastmmoe.runtime.errors import FastmmoeError, UnsupportedModel
from fastmmoe.runtime.request.config import ProcessorConfig


def update(directory: Path, file: str, **values: Any) -> None:
    """Set keys of a JSON file; an absent one starts empty."""
    target = directory / file
    old = json.loads(target.read_text()) if target.is_file() else {}
    target.write_text(json.dumps(old | values))


def change(directory: Path, file: str, path: str, value: Any) -> None:
    """Set a dotted key of a JSON file (None = remove it); an absent file starts empty."""
    target = directory / file
    values = json.loads(target.read_text()) if target.is_file() else {}
    *parents, key = path.split(".")
    inner = values
    for parent in parents:
        inner = inner[parent]
    if value is None:
        del inner[key]
    else:
        inner[key] = value
    target.write_text(json.dumps(values))


def refusal(look: Callable[[Path], object], directory: Path) -> str:
    """The message with which a directory is refused: one line that begins with a path in it."""
    with pytest.raises(UnsupportedModel) as raised:
        look(directory)
    message = str(raised.value)
    assert message.startswith(str(directory))
    assert "\n" not in message
    return message


def read_processor(
    directory: Path, *, vocab_size: int = 400, chat_template: str = "builtin"
) -> tuple[ProcessorConfig, list[str]]:
    """What an export reads of a checkpoint beside its weights, and the lines that it says of it."""
    lines: list[str] = []
    config = ConfigReader(json.loads((directory / "config.json").read_text()))
    found = read_processor_config(
        directory, config, vocab_size=vocab_size, chat_template=chat_template, say=lines.append
    )
    return found, lines


def assert_read_or_refused(directory: Path, where: object) -> None:
    """The files are read, or refused in one line; where: what was done to them."""
    try:
        config, lines = read_processor(directory)
    except FastmmoeError as error:
        lines = [str(error)]
    else:
        assert all(std > 0 for std in config.image_std), where
    assert all("\n" not in line and len(line) < 1000 for line in lines), where


def fuse_experts(tensors: dict[str, torch.Tensor], layers: int = 99) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint with the experts of its first layers as transformers 5 has them in memory."""
    fused = dict(tensors)
    for gate in [name for name in tensors if name.endswith(".mlp.experts.0.gate_proj.weight")]:
        prefix = gate.removesuffix("0.gate_proj.weight")
        if int(prefix.split(".")[-4]) >= layers:
            continue
        parts: dict[str, list[torch.Tensor]] = {"gate_up_proj": [], "down_proj": []}
        for e in range(sum(name.startswith(prefix) for name in tensors) // 3):
            gate_proj, up_proj, down_proj = (fused.pop(f"{prefix}{e}.{n}_proj.weight") for n in ("gate", "up", "down"))
            parts["gate_up_proj"].append(torch.cat((gate_proj, up_proj)))
            parts["down_proj"].append(down_proj)
        fused |= {prefix + name: torch.stack(experts) for name, experts in parts.items()}
    return fused
