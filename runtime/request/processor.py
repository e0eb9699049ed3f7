# SPDX-License-Identifier: Apache-2.0
"""Messages, or the official processors' tensors, to the inputs of the graphs; token ids back to text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from fastmmoe.runtime.errors import BundleMismatch, InvalidRequest
from fastmmoe.runtime.request.answers import AnswerStream
from fastmmoe.runtime.request.chat_template import ChatRenderer
from fastmmoe.runtime.request.config import DeepseekVl2ProcessorConfig, InternVlProcessorConfig, ProcessorConfig
from fastmmoe.runtime.request.image_reader import Picture
from fastmmoe.runtime.request.images import (
    Pixels,
    deepseek_vl2_grid,
    deepseek_vl2_tiles,
    internvl_grid,
    internvl_tiles,
)
from fastmmoe.runtime.request.inputs import (
    ModelInputs,
    check_tokens,
    deepseek_vl2_tensor_inputs,
    deepseek_vl2_vision_inputs,
    internvl_tensor_inputs,
)
from fastmmoe.runtime.request.prompts import (
    Marker,
    Messages,
    Prompt,
    Special,
    render_follow_up,
    render_prompt,
    template_tokens,
)
from fastmmoe.runtime.request.tokens import Encoder, load_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Array = npt.NDArray[Any]

# DeepSeek-VL2's processor cuts pictures into tiles only in conversations with at most so many of them.
MAX_TILED_IMAGES = 2


class Processor:
    """Preprocessing of one checkpoint, equal to its official processor.

    Args:
        config: from the bundle. tokenizer_file: tokenizer.json, or None where only tensors will be given.
    Raises:
        BundleMismatch: the tokenizer cannot be read, lacks a token that prompts need, or gives the image token another
            id than `config`.
    """

    def __init__(self, config: ProcessorConfig, tokenizer_file: Path | None) -> None:
        self.config = config
        self._tokenizer: Tokenizer | None = None
        self._encoder: Encoder | None = None
        self._chat_renderer: ChatRenderer | None = None
        if tokenizer_file is not None:
            self._tokenizer = load_tokenizer(tokenizer_file, config.special_tokens)
            found = self._tokenizer.token_to_id(config.image_token)
            if found != config.image_token_id:
                raise BundleMismatch(
                    f"{tokenizer_file}: {config.image_token} has the id {found}, the bundle's manifest says "
                    f"{config.image_token_id}; take both from one export"
                )
            self._encoder = Encoder(self._tokenizer, template_tokens(config.template) | image_tokens(config))

    def __call__(self, messages: Messages, *, max_tiles: int | None = None) -> ModelInputs:
        """Inputs of one conversation.

        Args:
            messages: Hugging Face schema, see `render_prompt`; pictures as in `image_reader.Picture`.
            max_tiles: the most local tiles of a picture; None = the checkpoint's.
        Raises:
            InvalidRequest: the messages, a picture or max_tiles are not legal, the sequence is too long, or there is
                no tokenizer.
        """
        renderer = self._renderer()
        prompt = renderer.prompt(messages) if renderer else render_prompt(messages, self.config.template)
        return self._inputs(prompt, max_tiles)

    def follow_up(
        self, content: Any, *, images_before: int = 0, tokens_before: int = 0, max_tiles: int | None = None
    ) -> ModelInputs:
        """Inputs of what a conversation goes on with when the user asks again, see `render_follow_up`.

        Args:
            content: of the user's message: str or a list of parts, see `render_prompt`.
            images_before: pictures of the conversation so far. They stay as they were cut; DeepSeek-VL2's new ones are
                cut into tiles only if there are at most two pictures with them.
            tokens_before: tokens of the conversation so far, pruned ones too: the position of the first new token.
            max_tiles: the most local tiles of a picture; None = the checkpoint's.
        Returns:
            the new tokens alone; visual_index counts from the first of them.
        Raises:
            InvalidRequest: the content, a picture, max_tiles or a count are not legal, the sequence is too long with
                what stands before, or there is no tokenizer.
        """
        for name, count in (("images_before", images_before), ("tokens_before", tokens_before)):
            if count < 0:
                raise InvalidRequest(f"{name} {count}: expected at least 0")
        renderer = self._renderer()
        prompt = renderer.follow_up(content) if renderer else render_follow_up(content, self.config.template)
        return self._inputs(prompt, max_tiles, images_before, tokens_before)

    def from_tensors(self, tensors: Mapping[str, npt.NDArray[Any]]) -> list[ModelInputs]:
        """Inputs of every row of a batch that the official processor made; left padding is removed.

        Args:
            tensors: DeepSeek-VL2: input_ids, attention_mask, images_seq_mask, images_spatial_crop, images. InternVL:
                input_ids, attention_mask, pixel_values. Shapes and types: see `deepseek_vl2_tensor_inputs` and
                `internvl_tensor_inputs`.
        Raises:
            InvalidRequest: names, shapes, types, ids or counts do not fit.
        """
        if not isinstance(tensors, Mapping):
            raise InvalidRequest(f"tensors is of type {type(tensors).__name__}: expected a dict of names and arrays")
        if isinstance(self.config, DeepseekVl2ProcessorConfig):
            return deepseek_vl2_tensor_inputs(tensors, self.config)
        return internvl_tensor_inputs(tensors, self.config)

    def encode(self, pieces: Iterable[str | Special]) -> list[int]:
        """Token ids of text and of the template's tokens between it. Raises InvalidRequest if there is no tokenizer."""
        return self._require_encoder().pieces(pieces)

    def new_stream(self) -> AnswerStream:
        """A decoder for one answer. Raises InvalidRequest if there is no tokenizer."""
        self._require_encoder()
        assert self._tokenizer is not None
        return AnswerStream(self._tokenizer, self.config.template, self.config.stop_token_ids)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of a whole answer, as `new_stream` gives it. Raises InvalidRequest if there is no tokenizer."""
        stream, text = self.new_stream(), ""
        for token_id in ids:
            text += stream.push(token_id)
            if stream.has_ended:
                return text
        return text + stream.rest()

    def _inputs(
        self, prompt: Prompt, max_tiles: int | None, images_before: int = 0, tokens_before: int = 0
    ) -> ModelInputs:
        encoder, config = self._require_encoder(), self.config
        pictures = [Picture(image) for image in prompt.images]
        cut: _Cut
        if isinstance(config, DeepseekVl2ProcessorConfig):
            tiled = images_before + len(pictures) <= MAX_TILED_IMAGES
            cut = _DeepseekVl2Cut(config, [p.size for p in pictures], max_tiles, tiled=tiled)
        else:
            cut = _InternVlCut(config, [p.size for p in pictures], max_tiles)
        visual = sum(cut.visual_counts)
        if visual > config.max_position_embeddings:
            # So many ids, and after them tiles, may not fit into memory.
            text, _ = _ids(config, encoder, prompt, [0] * len(pictures))
            check_tokens(len(text) + visual, visual, config, tokens_before)
        input_ids, visual_index = _ids(config, encoder, prompt, cut.visual_counts)
        check_tokens(len(input_ids), visual, config, tokens_before)
        return ModelInputs(
            input_ids=input_ids,
            visual_index=visual_index,
            vision_inputs=cut.vision_inputs(pictures),
            tile_counts=cut.tile_counts,
            image_sizes=tuple(picture.size for picture in pictures),
        )

    def _renderer(self) -> ChatRenderer | None:
        """Of the checkpoint's own template, where the bundle has one."""
        template = self.config.chat_template
        if template is None:
            return None
        if self._chat_renderer is None:
            self._chat_renderer = ChatRenderer(template, self._require_encoder().names, self.config.image_token)
        return self._chat_renderer

    def _require_encoder(self) -> Encoder:
        if self._encoder is None:
            raise InvalidRequest(
                "there is no tokenizer: the checkpoint was exported without a tokenizer.json; give ready-made tensors, "
                "or export again with the file in the checkpoint directory"
            )
        return self._encoder


def image_tokens(config: ProcessorConfig) -> set[str]:
    """Names of the tokens that pictures are written with."""
    if isinstance(config, DeepseekVl2ProcessorConfig):
        return {config.image_token}
    return {config.image_token, config.image_start_token, config.image_end_token}


def _ids(
    config: ProcessorConfig, encoder: Encoder, prompt: Prompt, visual_counts: Sequence[int]
) -> tuple[Array, Array]:
    """input_ids int32 [T] and visual_index int32 [V] of a prompt whose pictures have so many visual tokens each.

    The official code encodes the text with all tokens in it at once. Special tokens split a text, so what stands
    between two of them can be encoded by itself, and is text whatever it spells.
    """
    is_deepseek = isinstance(config, DeepseekVl2ProcessorConfig)
    front, back = ([], []) if is_deepseek or prompt.is_complete else encoder.surrounding()
    ids: list[int | None] = list(front)
    visual: list[int] = []
    counts = iter(visual_counts)
    for piece in prompt.pieces:
        if piece is Marker.IMAGE:
            start, end = _around_image(config, encoder)
            count = next(counts)
            visual += range(len(ids) + len(start), len(ids) + len(start) + count)
            ids += [*start, *[config.image_token_id] * count, *end]
        elif isinstance(piece, Marker):
            assert isinstance(config, DeepseekVl2ProcessorConfig)
            ids.append(config.bos_token_id if piece is Marker.BOS else config.eos_token_id)
        else:
            ids += encoder.pieces([piece])
    return np.array([*ids, *back], np.int32), np.array(visual, np.int32)


def _around_image(config: ProcessorConfig, encoder: Encoder) -> tuple[list[int], list[int]]:
    if isinstance(config, DeepseekVl2ProcessorConfig):
        return [], []
    return encoder.pieces([Special(config.image_start_token)]), encoder.pieces([Special(config.image_end_token)])


class _Cut(Protocol):
    """How pictures will be cut, known from their sizes alone.

    Attributes:
        tile_counts, visual_counts: tiles and visual tokens of each picture.
    """

    tile_counts: tuple[int, ...]
    visual_counts: list[int]

    def vision_inputs(self, pictures: Sequence[Picture]) -> dict[str, Array]:
        """Inputs of the vision graph; one picture is decoded at a time."""


class _DeepseekVl2Cut:
    def __init__(
        self,
        config: DeepseekVl2ProcessorConfig,
        sizes: Sequence[tuple[int, int]],
        max_tiles: int | None,
        *,
        tiled: bool,
    ) -> None:
        self._config, self._tiled, self._max_tiles = config, tiled, max_tiles
        self._grids = [deepseek_vl2_grid(size, config, tiled=tiled, max_tiles=max_tiles) for size in sizes]
        side = config.grid_side
        self.tile_counts = tuple(1 + wide * high for wide, high in self._grids)
        self.visual_counts = [side * (side + 1) + 1 + high * side * (wide * side + 1) for wide, high in self._grids]

    def vision_inputs(self, pictures: Sequence[Picture]) -> dict[str, Array]:
        config, tiled, max_tiles = self._config, self._tiled, self._max_tiles
        tiles = (deepseek_vl2_tiles(p.decode(), config, tiled=tiled, max_tiles=max_tiles)[0] for p in pictures)
        pixels = _stack(tiles, self.tile_counts, config.tile_size)
        return deepseek_vl2_vision_inputs(self._config, pixels, self._grids) if pictures else {}


class _InternVlCut:
    def __init__(
        self, config: InternVlProcessorConfig, sizes: Sequence[tuple[int, int]], max_tiles: int | None
    ) -> None:
        self._config, self._max_tiles = config, max_tiles
        self.tile_counts = tuple(internvl_grid(size, config, max_tiles=max_tiles)[2] for size in sizes)
        self.visual_counts = [count * config.tokens_per_tile for count in self.tile_counts]

    def vision_inputs(self, pictures: Sequence[Picture]) -> dict[str, Array]:
        tiles = (internvl_tiles(p.decode(), self._config, max_tiles=self._max_tiles) for p in pictures)
        pixels = _stack(tiles, self.tile_counts, self._config.tile_size)
        return {"pixel_values": pixels} if pictures else {}


def _stack(tiles: Iterable[Pixels], counts: Sequence[int], side: int) -> Pixels:
    """[sum of counts, 3, S, S] from the tiles of each picture, of which no two exist at a time."""
    pixels = np.empty((sum(counts), 3, side, side), np.float32)
    start = 0
    for one, count in zip(tiles, counts, strict=True):
        pixels[start : start + count] = one
        start += count
    return pixels
