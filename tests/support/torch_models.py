# SPDX-License-Identifier: Apache-2.0
"""Golden checkpoints as torch modules with their values, and the golden prompts they run."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastmmoe.exporter.checkpoint.reader import Checkpoint
from fastmmoe.exporter.manifest import language_model_info
from fastmmoe.exporter.model import Model, Precision
from fastmmoe.exporter.pruning.settings import PolicyOptions
from fastmmoe.exporter.torch_backend import TorchBackend
from fastmmoe.runtime.bundle import graph_io, signatures
from fastmmoe.runtime.method.call import NO_VISUAL_TOKENS, Call, Chunk
from fastmmoe.runtime.method.schedule import Schedule, plan_request
from fastmmoe.runtime.request.deepseek_vl2 import deepseek_vl2_layout
from fastmmoe.runtime.types import Array

Outputs = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Prompt:
    """One row of a golden case without its padding.

    Attributes:
        is_token: [T of the case] bool, False at padding.
        input_ids: [T]. visual_index: [V] int32. pixel_values: [tiles, 3, S, S] or None.
        grids: (tiles_wide, tiles_high) of every picture; DeepSeek-VL2 only.
    """

    is_token: Array
    input_ids: Array
    visual_index: Array
    pixel_values: Array | None
    grids: tuple[tuple[int, int], ...]


def read_prompts(golden: Path, name: str, case: str) -> list[Prompt]:
    """The rows of a case: "single", "batch2" or "text"; pixels are read where the case has a picture."""
    if name.startswith("dsvl2-"):
        with np.load(golden / "dsvl2-inputs" / f"inputs_{case}.npz") as arrays:
            data = {key: arrays[key] for key in arrays.files}
        is_visual, pixels = data["images_seq_mask"], data.get("images")
        crops = [[(int(wide), int(high)) for wide, high in row if wide] for row in data["images_spatial_crop"]]
        tiles = [sum(1 + wide * high for wide, high in row) for row in crops]
    else:
        image_token = json.loads((golden / name / "config.json").read_text())["image_token_id"]
        with np.load(golden / name / f"outputs_{case}.npz") as arrays:
            data = {key: arrays[key] for key in ("input_ids", "attention_mask", "pixel_values") if key in arrays.files}
        is_visual, pixels = data["input_ids"] == image_token, data.get("pixel_values")
        if case == "single":
            with np.load(golden / "internvl-inputs" / "pixels_img0_max6.npz") as arrays:
                pixels = arrays["pixel_values"]
        crops = [[] for _ in is_visual]
        tiles = [int(row.any()) * (0 if pixels is None else len(pixels)) for row in is_visual]
        pixels = None if pixels is None else np.broadcast_to(pixels, (len(is_visual), *pixels.shape))
    prompts = []
    for row, mask in enumerate(data["attention_mask"].astype(bool)):
        visual_index = np.nonzero(is_visual[row][mask])[0].astype(np.int32)
        own_pixels = None if pixels is None or not tiles[row] else pixels[row, : tiles[row]].astype(np.float32)
        prompts.append(Prompt(mask, data["input_ids"][row][mask], visual_index, own_pixels, tuple(crops[row])))
    return prompts


class TorchModel:
    """The modules of one checkpoint, float32, values loaded, running one unpadded sequence at a time."""

    def __init__(self, directory: Path, options: PolicyOptions) -> None:
        self.model = Model(Checkpoint(directory), options, Precision(torch.float32, torch.float32))
        for graph, module in self.model.graphs.items():
            values = {name: self.model.load(f"{graph}.{name}") for name, _ in module.named_parameters()}
            module.load_state_dict(values, assign=True)
        self.vision: Any = self.model.graphs.vision
        self.language_model = self.model.graphs.language_model

    def schedule(
        self, visual_tokens: int, retention: float, visual_top_k: int | None = None, method: str | None = None
    ) -> Schedule:
        """The schedule of one request."""
        return plan_request(
            self.model.policy,
            visual_tokens=visual_tokens,
            moe_layers=self.model.config.moe_layers,
            top_k=self.model.config.moe.top_k,
            method=method,
            retention=retention,
            visual_top_k=visual_top_k,
        )

    def embed(self, prompt: Prompt) -> torch.Tensor:
        """inputs_embeds [T, H]: token embeddings, image features at the visual positions."""
        embeds = self.embed_ids(torch.from_numpy(prompt.input_ids))
        if prompt.pixel_values is None:
            return embeds
        inputs = {graph_io.PIXEL_VALUES: torch.from_numpy(prompt.pixel_values)}
        if prompt.grids:
            side = math.isqrt(self.model.config.vision.tokens_per_tile)
            layout = deepseek_vl2_layout(prompt.grids, side, global_view_first=True)
            inputs[graph_io.LAYOUT_INDEX] = torch.from_numpy(layout)
        embeds[torch.from_numpy(prompt.visual_index).long()] = self.vision(inputs)[graph_io.IMAGE_FEATURES]
        return embeds

    def prefill(
        self, embeds: torch.Tensor, visual_index: Array, schedule: Schedule, alpha: float = 0.5, seed: int = 0
    ) -> Outputs:
        """All outputs of the language model for a whole prompt."""
        return self.extend([Chunk(0, embeds.numpy(), visual_index, schedule)], [0], None, alpha, seed)

    def decode(self, prefill: Outputs, length: int, steps: int, schedule: Schedule) -> list[Outputs]:
        """Outputs of greedy steps after a prefill of `length` positions: the first takes the prefill's best token."""
        outputs = [prefill]
        for step in range(steps):
            embeds = self.embed_ids(outputs[-1][graph_io.LOGITS].argmax(1))
            chunk = Chunk(0, embeds.numpy(), NO_VISUAL_TOKENS, schedule.for_text())
            outputs.append(self.extend([chunk], [length + step], outputs[-1]))
        return outputs[1:]

    def extend(
        self, chunks: list[Chunk], lengths: list[int], before: Outputs | None, alpha: float = 0.5, seed: int = 0
    ) -> Outputs:
        """All outputs of one call after the call whose outputs are `before`."""
        info, policy = language_model_info(self.model.config), self.model.policy
        groups = signatures.layer_groups(info.layers, policy.sites)
        count = len(groups)
        old, past = None, np.zeros((count, len(chunks)), np.int32)
        if before is not None:
            names = [tensor.name for tensor in signatures.cache_inputs(info, policy, "float32")]
            old = {name: before[graph_io.present_name(name)] for name in names}
            past = np.stack([before[graph_io.present_name(graph_io.past_lengths(g))] for g in range(count)])
        room = [int(past[g].max()) + max(len(chunk.inputs_embeds) for chunk in chunks) for g in range(count)]
        if old is not None:
            had = [next(x.shape[2] for n, x in old.items() if f"values.{layers[0]}." in n) for layers in groups]
            room = [max(pair) for pair in zip(room, had, strict=True)]
        cache = TorchBackend(self.model.graphs, policy, info, 1 << 16).new_caches(past.shape[1], room, old)
        feeds = signatures.feeds(info, Call(policy, chunks, lengths, past.tolist(), alpha, seed))
        return self.language_model({name: torch.from_numpy(value) for name, value in feeds.items()} | cache)

    def cache_lengths(self, outputs: Outputs, sequence: int = 0) -> list[int]:
        """Cached rows of every layer after the call that gave `outputs`."""
        groups = signatures.layer_groups(len(self.language_model.layers), self.model.policy.sites)
        lengths = [int(outputs[f"present_lengths.{g}"][sequence]) for g in range(len(groups))]
        return [n for n, layers in zip(lengths, groups, strict=True) for _ in layers]

    def cached(self, outputs: Outputs, sequence: int = 0) -> dict[str, torch.Tensor]:
        """The rows in use of every cache, [Nkv, rows, D] by the output's name."""
        lengths = self.cache_lengths(outputs, sequence)
        present = {n: x for n, x in outputs.items() if n.startswith("present.")}
        return {n: x[sequence, :, : lengths[int(n.split(".")[1])]] for n, x in present.items()}

    def embed_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.model.graphs.embedding({graph_io.INPUT_IDS: input_ids.int()})[graph_io.INPUTS_EMBEDS]
