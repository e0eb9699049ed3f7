# SPDX-License-Identifier: Apache-2.0
"""Records of a checkpoint's preprocessing and prompts: plain data, stored in the bundle's manifest."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta

from fastmmoe.runtime.ranges import (
    Deviation,
    Level,
    PatchCount,
    Pixels,
    Positions,
    Real,
    Tiles,
    TokenId,
    VocabSize,
)

FamilyName: TypeAlias = Literal["deepseek_vl2", "internvl3_5"]
Rgb: TypeAlias = tuple[Real, Real, Real]
Deviations: TypeAlias = tuple[Deviation, Deviation, Deviation]
Text: TypeAlias = Annotated[str, Meta(min_length=1, max_length=1024)]
Resolutions: TypeAlias = Annotated[tuple[tuple[Pixels, Pixels], ...], Meta(min_length=1, max_length=4096)]
Texts: TypeAlias = Annotated[tuple[Text, ...], Meta(max_length=4096)]
TokenIds: TypeAlias = Annotated[tuple[TokenId, ...], Meta(max_length=4096)]


class ChatTemplate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A checkpoint's own template, in Jinja.

    Attributes:
        takes_parts: a message's content is a list of parts; otherwise a string with the pictures' places in it.
        tokens: what the template knows by name: "bos_token", "eos_token", ...
    """

    source: Annotated[str, Meta(min_length=1, max_length=1 << 20)]
    takes_parts: bool
    tokens: dict[str, Text]


class DeepseekVl2ProcessorConfig(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, tag="deepseek_vl2"
):
    """Preprocessing of DeepSeek-VL2.

    An id is None where the checkpoint names it nowhere (it has no tokenizer.json): then only ready-made tensors can
    be given to the model.

    Attributes:
        candidate_resolutions: (width, height) of every local view, in the order that breaks ties.
        patch_size, downsample_ratio: give the side of one tile's grid of visual tokens.
        image_mean, image_std: what pixels in [0, 1] are normalised by.
        pad_color: colour of the bars beside a padded picture, 0 to 255.
        global_view_first: the global view's tokens stand before the local view's.
        template: name of the chat template.
        chat_template: the checkpoint's own, which takes its place.
        image_token: the placeholder in the text and the token at every visual position.
        special_tokens: added to the tokenizer in this order where it lacks them, which gives them their ids.
        stop_token_ids: generation ends at any of them.
        vocab_size: rows of the embedding; every id is smaller.
        max_position_embeddings: the most tokens of a sequence.
    """

    candidate_resolutions: Resolutions
    patch_size: Pixels
    downsample_ratio: PatchCount
    image_mean: Rgb
    image_std: Deviations
    pad_color: tuple[Level, Level, Level]
    global_view_first: bool
    template: Literal["deepseek"]
    image_token: Text
    image_token_id: TokenId | None
    bos_token_id: TokenId | None
    eos_token_id: TokenId | None
    pad_token_id: TokenId | None
    special_tokens: Texts
    stop_token_ids: TokenIds
    vocab_size: VocabSize
    max_position_embeddings: Positions
    chat_template: ChatTemplate | None = None

    @property
    def tile_size(self) -> int:
        """Side of a tile in pixels."""
        return self.candidate_resolutions[0][0]

    @property
    def grid_side(self) -> int:
        """Rows and columns of one tile's grid of visual tokens (structural vectors not counted)."""
        return -(-(self.tile_size // self.patch_size) // self.downsample_ratio)


class InternVlProcessorConfig(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, tag="internvl"
):
    """Preprocessing of InternVL3.5.

    Attributes:
        tile_size: side of a tile in pixels.
        tokens_per_tile: visual tokens of a tile.
        min_tiles, max_tiles: bounds of columns * rows of the grid of local tiles; requests may change the upper one.
        use_thumbnail: pictures of more than one tile get the whole picture as a last tile.
        image_mean, image_std: what pixels in [0, 1] are normalised by.
        template: name of the chat template.
        chat_template: the checkpoint's own, which takes its place.
        image_token: the token at every visual position; image_start_token and image_end_token surround those of one
            picture.
        bos_token_id, pad_token_id: None where the checkpoint names none.
        special_tokens: added to the tokenizer in this order where it lacks them, which gives them their ids.
        stop_token_ids: generation ends at any of them.
        vocab_size: rows of the embedding; every id is smaller.
        max_position_embeddings: the most tokens of a sequence.
    """

    tile_size: Pixels
    tokens_per_tile: Positions
    min_tiles: Tiles
    max_tiles: Tiles
    use_thumbnail: bool
    image_mean: Rgb
    image_std: Deviations
    template: Literal["internvl2_5", "internvl3_5_gpt_oss"]
    image_token: Text
    image_start_token: Text
    image_end_token: Text
    image_token_id: TokenId
    bos_token_id: TokenId | None
    pad_token_id: TokenId | None
    stop_token_ids: TokenIds
    vocab_size: VocabSize
    max_position_embeddings: Positions
    special_tokens: Texts = ()
    chat_template: ChatTemplate | None = None


ProcessorConfig: TypeAlias = DeepseekVl2ProcessorConfig | InternVlProcessorConfig
