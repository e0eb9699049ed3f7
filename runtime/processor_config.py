# SPDX-License-Identifier: Apache-2.0
"""What preprocessing and prompts need to know of a checkpoint: plain data, stored in the bundle's manifest."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

Rgb: TypeAlias = tuple[float, float, float]


class DeepseekVl2ProcessorConfig(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="deepseek_vl2"
):
    """Preprocessing of DeepSeek-VL2.

    An id is None where the checkpoint names it nowhere (it has no tokenizer.json): then only ready-made tensors can
    be given to the model.

    Attributes:
        candidate_resolutions: (width, height) of every local view, in the order that breaks ties.
        patch_size, downsample_ratio: give the side of one tile's grid of visual tokens.
        image_mean, image_std: of pixels in [0, 1]. pad_color: of the bars beside a padded picture, 0 to 255.
        global_view_first: the global view's tokens stand before the local view's.
        template: name of the chat template.
        image_token: the placeholder in the text and the token at every visual position.
        special_tokens: added to the tokenizer in this order where it lacks them, which gives them their ids.
        stop_token_ids: generation ends at any of them.
        vocab_size: rows of the embedding; every id is smaller.
        max_position_embeddings: the most tokens of a sequence.
    """

    candidate_resolutions: tuple[tuple[int, int], ...]
    patch_size: int
    downsample_ratio: int
    image_mean: Rgb
    image_std: Rgb
    pad_color: tuple[int, int, int]
    global_view_first: bool
    template: Literal["deepseek"]
    image_token: str
    image_token_id: int | None
    bos_token_id: int | None
    eos_token_id: int | None
    pad_token_id: int | None
    special_tokens: tuple[str, ...]
    stop_token_ids: tuple[int, ...]
    vocab_size: int
    max_position_embeddings: int

    @property
    def tile_size(self) -> int:
        """Side of a tile in pixels."""
        return self.candidate_resolutions[0][0]

    @property
    def grid_side(self) -> int:
        """Rows and columns of one tile's grid of visual tokens (structural vectors not counted)."""
        return -(-(self.tile_size // self.patch_size) // self.downsample_ratio)


class InternVlProcessorConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="internvl"):
    """Preprocessing of InternVL3.5.

    Attributes:
        tile_size: side of a tile in pixels. tokens_per_tile: its visual tokens.
        min_tiles, max_tiles: bounds of columns * rows of the grid of local tiles; requests may change the upper one.
        use_thumbnail: pictures of more than one tile get the whole picture as a last tile.
        image_mean, image_std: of pixels in [0, 1].
        template: name of the chat template.
        image_token: the token at every visual position; image_start_token and image_end_token surround those of one
            picture.
        bos_token_id, pad_token_id: None where the checkpoint names none.
        stop_token_ids: generation ends at any of them.
        vocab_size: rows of the embedding; every id is smaller.
        max_position_embeddings: the most tokens of a sequence.
    """

    tile_size: int
    tokens_per_tile: int
    min_tiles: int
    max_tiles: int
    use_thumbnail: bool
    image_mean: Rgb
    image_std: Rgb
    template: Literal["internvl2_5", "internvl3_5_gpt_oss"]
    image_token: str
    image_start_token: str
    image_end_token: str
    image_token_id: int
    bos_token_id: int | None
    pad_token_id: int | None
    stop_token_ids: tuple[int, ...]
    vocab_size: int
    max_position_embeddings: int


ProcessorConfig: TypeAlias = DeepseekVl2ProcessorConfig | InternVlProcessorConfig
