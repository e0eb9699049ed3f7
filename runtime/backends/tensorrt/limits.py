# SPDX-License-Identifier: Apache-2.0
"""What engines take: requests are compared with the profiles before anything runs, and outputs' shapes follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from fastmmoe.runtime.backends.batch import round_up
from fastmmoe.runtime.backends.tensorrt.engine import Shape
from fastmmoe.runtime.backends.tensorrt.profiles import Profile, engine_profiles
from fastmmoe.runtime.bundle import graph_io, signatures
from fastmmoe.runtime.bundle.manifest import Limits, Manifest
from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.types import Array


class CallLimits:
    """The greatest shapes of the language model's inputs.

    Args:
        directory: of the bundle, for messages.

    Attributes:
        inputs: of a call, without embeddings, caches and experts.
        changing: names of inputs with dimensions that may change.
    """

    def __init__(self, manifest: Manifest, limits: Limits, directory: Path) -> None:
        self._limits, self._directory = limits, directory
        self._tokens_per_tile = manifest.vision.tokens_per_tile
        info, policy = manifest.language_model, manifest.policy
        self._prefill, self._decode = engine_profiles(manifest, limits)["language_model"]
        others = {
            graph_io.INPUTS_EMBEDS,
            *(t.name for t in signatures.cache_inputs(info, policy, manifest.cache_dtype)),
        }
        called = signatures.language_model_inputs(info, policy, manifest.activation_dtype, manifest.cache_dtype)
        self.inputs = [tensor for tensor in called if tensor.name not in others]
        self.changing = set(self._prefill)

    def prefill_inputs(self) -> dict[str, tuple[Shape, str]]:
        """Name -> greatest shape and dtype of what a call uploads."""
        return self._greatest(self._prefill, self._limits.max_tokens)

    def decode_inputs(self) -> dict[str, tuple[Shape, str]]:
        """The same of a decode step."""
        return self._greatest(self._decode, self._limits.max_batch)

    def check_pictures(self, vision_inputs: Mapping[str, Array]) -> int:
        """Visual tokens of pictures.

        Raises:
            InvalidRequest: there are more than the engines take.
        """
        tiles = len(vision_inputs[graph_io.PIXEL_VALUES])
        self._check("tiles", tiles, "tiles", self._limits.max_tiles)
        layout = vision_inputs.get(graph_io.LAYOUT_INDEX)
        rows = tiles * self._tokens_per_tile if layout is None else len(layout)
        self._check("visual tokens", rows, "visual", self._limits.max_visual)
        return rows

    def check_caches(self, sequences: int, capacities: Sequence[int]) -> None:
        """Raise InvalidRequest where the engines have no room for so many sequences or tokens."""
        self._check("sequences at once", sequences, "batch", self._limits.max_batch)
        if max(capacities) > round_up(self._limits.max_cache):
            self._check("tokens of one sequence, answer included", max(capacities), "cache", self._limits.max_cache)

    def check_call(self, arrays: Mapping[str, Array]) -> None:
        """Raise InvalidRequest where a call's inputs are greater than the engines take."""
        self._check("tokens of one call", len(arrays[graph_io.INPUT_IDS]), "tokens", self._limits.max_tokens)
        self._check("visual tokens", len(arrays[graph_io.VISUAL_INDEX]), "visual", self._limits.max_visual)
        for name, (_, _, greatest) in self._prefill.items():
            if name in arrays and any(a > b for a, b in zip(arrays[name].shape, greatest, strict=True)):
                raise InvalidRequest(
                    f"{name} is {list(arrays[name].shape)}, the engines take up to {list(greatest)}: build them for "
                    f"more, see fastmmoe build --help"
                )

    def _check(self, what: str, found: int, option: str, most: int) -> None:
        if found > most:
            raise InvalidRequest(
                f"{found} {what}: the engines take {most}; build them for more: fastmmoe build {self._directory} "
                f"--max-{option} {found}"
            )

    def _greatest(self, profile: Profile, tokens: int) -> dict[str, tuple[Shape, str]]:
        found: dict[str, tuple[Shape, str]] = {graph_io.INPUT_IDS: ((tokens,), "int32")}
        for tensor in self.inputs:
            shape = profile[tensor.name][2] if tensor.name in profile else tensor.shape
            found[tensor.name] = (tuple(int(size) for size in shape), tensor.dtype)
        return found


def output_shapes(manifest: Manifest, shapes: Mapping[str, Shape], caches: Mapping[str, Shape]) -> dict[str, Shape]:
    """Shapes of the language model's outputs.

    Args:
        shapes: of the inputs of a call.
        caches: of the caches' inputs.
    """
    sequences = shapes[graph_io.SEQUENCE_OFFSETS][0] - 1
    found: dict[str, Shape] = {
        graph_io.LOGITS: (sequences, manifest.language_model.vocab_size),
        graph_io.NEXT_IDS: (sequences,),
        graph_io.NEXT_POSITION_IDS: (sequences,),
    }
    for name in (*caches, *(name for name in shapes if name.startswith("past_"))):
        found[graph_io.present_name(name)] = caches[name] if name in caches else shapes[name]
    (rows,), (visual,) = shapes[graph_io.POSITION_IDS], shapes[graph_io.VISUAL_INDEX]
    for site in range(len(manifest.policy.sites)):
        (kept,) = shapes[graph_io.keep_slots(site)]
        rows, visual = rows - visual + kept, kept
        found[graph_io.kept_index(site)] = (rows,)
    return found
