# SPDX-License-Identifier: Apache-2.0
"""The protocol of a family's preprocessing. A new family is one file here, and one entry of `FAMILIES`."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Protocol

from fastmmoe.runtime.request import deepseek_vl2, internvl
from fastmmoe.runtime.request.config import (
    DeepseekVl2ProcessorConfig,
    FamilyName,
    InternVlProcessorConfig,
    ProcessorConfig,
)
from fastmmoe.runtime.request.image_reader import Picture
from fastmmoe.runtime.request.images import PictureMap, Pixels
from fastmmoe.runtime.request.inputs import ModelInputs
from fastmmoe.runtime.request.prompts import Marker
from fastmmoe.runtime.types import Array


class Cut(Protocol):
    """How pictures will be cut, known from their sizes alone.

    Attributes:
        tile_counts: tiles of each picture.
        visual_counts: visual tokens of each picture.
    """

    tile_counts: tuple[int, ...]
    visual_counts: list[int]

    def vision_inputs(self, pictures: Sequence[Picture]) -> dict[str, Array]:
        """Inputs of the vision graph, none without pictures; one picture is decoded at a time."""

    def tile_inputs(self, pixels: Pixels) -> dict[str, Array]:
        """Inputs of the vision graph, of normalised tiles [n_tiles, 3, S, S] that were cut like this."""


class Family(Protocol):
    """A module with these functions; `config` is the family's own processor configuration.

    Attributes:
        NAME: the family's, as manifests have it.
        HAS_LAYOUT: the vision graph has the input `layout_index`.
        HAS_OWN_ENDS: its template writes what stands around a prompt; otherwise the tokenizer adds it.
        HAS_VIDEO: the model knows frames of a video.
        SPLITS_AT_PICTURES: the official code, too, encodes what stands between pictures by itself.
    """

    NAME: FamilyName
    HAS_LAYOUT: bool
    HAS_OWN_ENDS: bool
    HAS_VIDEO: bool
    SPLITS_AT_PICTURES: bool

    def cut(
        self,
        config: Any,
        sizes: Sequence[tuple[int, int]],
        max_tiles: int | None,
        pictures_before: int,
        frames: Collection[int] = (),
    ) -> Cut:
        """How pictures of these sizes, (width, height), are cut after other pictures of the conversation.

        frames: numbers of those that are frames of a video, one tile each; none where a family has none.
        """

    def tensor_inputs(self, tensors: Mapping[str, Array], config: Any) -> list[ModelInputs]:
        """Inputs of every row of a batch that the official processor made."""

    def around_picture(self, config: Any) -> tuple[str, ...]:
        """Names of the tokens before and after a picture's visual tokens; empty where there are none."""

    def marker_id(self, config: Any, marker: Marker) -> int | None:
        """The token that a marker of the template stands for."""

    def least_tiles(self, config: Any) -> int:
        """The least that a request's max_tiles may be."""

    def picture_tiles(self, config: Any) -> int:
        """The most tiles of one picture, its global view or thumbnail among them."""

    def most_visual_tokens(self, config: Any, tiles: int) -> int:
        """The most visual tokens that pictures of so many tiles in all can have."""

    def picture_map(self, config: Any, inputs: ModelInputs) -> PictureMap:
        """Where the visual tokens of a prompt with one picture stand."""

    def contradictions(self, config: Any, tokens_per_tile: int) -> Iterator[str]:
        """What in a manifest's record contradicts itself or the vision graph, in words that follow the file's name."""

    def has_tokenizer(self, config: Any) -> bool | None:
        """Whether the record is of a checkpoint with a tokenizer; None = it is the same with and without."""


FAMILIES: dict[type[ProcessorConfig], Family] = {
    DeepseekVl2ProcessorConfig: deepseek_vl2,
    InternVlProcessorConfig: internvl,
}


def family_of(config: ProcessorConfig) -> Family:
    """The family of a processor configuration."""
    return FAMILIES[type(config)]


def processor_tag(name: FamilyName) -> str:
    """What `type` says in the processor records of a family."""
    tag: str = next(str(config.__struct_config__.tag) for config, family in FAMILIES.items() if name == family.NAME)
    return tag
