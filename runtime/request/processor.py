# SPDX-License-Identifier: Apache-2.0
"""Messages, or the official processors' tensors, to the inputs of the graphs; token ids back to text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastmmoe.runtime.errors import BundleMismatch, InvalidRequest
from fastmmoe.runtime.request.answers import AnswerStream
from fastmmoe.runtime.request.chat_template import ChatRenderer
from fastmmoe.runtime.request.config import ProcessorConfig
from fastmmoe.runtime.request.family import family_of
from fastmmoe.runtime.request.image_reader import Picture
from fastmmoe.runtime.request.inputs import ModelInputs, check_tokens
from fastmmoe.runtime.request.prompts import (
    Marker,
    Messages,
    Prompt,
    Special,
    answer_header,
    render_follow_up,
    render_prompt,
    template_tokens,
)
from fastmmoe.runtime.request.tokens import Encoder, load_tokenizer
from fastmmoe.runtime.request.video import VideoFrame
from fastmmoe.runtime.types import Array

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class Processor:
    """Preprocessing of one checkpoint, equal to its official processor.

    Args:
        config: the bundle's record of preprocessing.
        tokenizer_file: tokenizer.json, or None where only tensors will be given.
    Raises:
        BundleMismatch: the tokenizer cannot be read, lacks a token that prompts need, or gives the image token another
            id than `config`.
    """

    def __init__(self, config: ProcessorConfig, tokenizer_file: Path | None) -> None:
        self.config, self._family = config, family_of(config)
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
        self, content: Any, *, pictures_before: int = 0, tokens_before: int = 0, max_tiles: int | None = None
    ) -> ModelInputs:
        """Inputs of a further question in a conversation, see `render_follow_up`.

        Args:
            content: the user's message: str or a list of parts, see `render_prompt`.
            pictures_before: pictures of the conversation so far. They stay as they were cut; DeepSeek-VL2's new ones
                are cut into tiles only if there are at most two pictures with them.
            tokens_before: tokens of the conversation so far, pruned ones too: the position of the first new token.
            max_tiles: the most local tiles of a picture; None = the checkpoint's.
        Returns:
            the new tokens alone; visual_index counts from the first of them.
        Raises:
            InvalidRequest: the content, a picture, max_tiles or a count are not legal, the sequence is too long with
                what stands before, or there is no tokenizer.
        """
        for name, count in (("pictures_before", pictures_before), ("tokens_before", tokens_before)):
            if count < 0:
                raise InvalidRequest(f"{name} {count}: expected at least 0")
        renderer = self._renderer()
        prompt = renderer.follow_up(content) if renderer else render_follow_up(content, self.config.template)
        return self._inputs(prompt, max_tiles, pictures_before, tokens_before)

    def from_tensors(self, tensors: Mapping[str, npt.NDArray[Any]]) -> list[ModelInputs]:
        """Inputs of every row of a batch that the official processor made; left padding is removed.

        Args:
            tensors: DeepSeek-VL2: input_ids, attention_mask, images_seq_mask, images_spatial_crop, images. InternVL:
                input_ids, attention_mask, pixel_values. Shapes and types: see `tensor_inputs` in deepseek_vl2.py and
                internvl.py.
        Raises:
            InvalidRequest: names, shapes, types, ids or counts do not fit.
        """
        if not isinstance(tensors, Mapping):
            raise InvalidRequest(f"tensors is of type {type(tensors).__name__}: expected a dict of names and arrays")
        return self._family.tensor_inputs(tensors, self.config)

    def encode(self, pieces: Iterable[str | Special]) -> list[int]:
        """Token ids of text and of the template's tokens between it. Raises InvalidRequest if there is no tokenizer."""
        return self._require_encoder().pieces(pieces)

    def answer_header(self) -> list[int]:
        """Token ids between a question and an answer's text. Raises InvalidRequest if there is no tokenizer."""
        return self._require_encoder().pieces(answer_header(self.config.template))

    def token_text(self, token_id: int) -> str:
        """How one token is written, special ones by their names; a part of a character is U+FFFD."""
        self._require_encoder()
        assert self._tokenizer is not None
        return str(self._tokenizer.decode([token_id], skip_special_tokens=False))

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
        self, prompt: Prompt, max_tiles: int | None, pictures_before: int = 0, tokens_before: int = 0
    ) -> ModelInputs:
        encoder, config = self._require_encoder(), self.config
        frames = {i for i, image in enumerate(prompt.images) if isinstance(image, VideoFrame)}
        if frames and not self._family.HAS_VIDEO:
            raise InvalidRequest(
                f"the messages hold a video: {self._family.NAME} knows none; give its frames as pictures, as "
                "runtime.request.video.sample_frames chooses them, each {'type': 'image', 'image': frame}"
            )
        pictures = [Picture(one.picture if isinstance(one, VideoFrame) else one) for one in prompt.images]
        cut = self._family.cut(config, [picture.size for picture in pictures], max_tiles, pictures_before, frames)
        visual = sum(cut.visual_counts)
        if visual > config.max_position_embeddings:
            # So many ids, and after them tiles, may not fit into memory.
            text, _ = _ids(config, encoder, prompt, [0] * len(pictures))
            check_tokens(len(text) + visual, visual, config.max_position_embeddings, tokens_before)
        input_ids, visual_index = _ids(config, encoder, prompt, cut.visual_counts)
        check_tokens(len(input_ids), visual, config.max_position_embeddings, tokens_before)
        return ModelInputs(
            input_ids=input_ids,
            visual_index=visual_index,
            vision_inputs=cut.vision_inputs(pictures),
            tile_counts=cut.tile_counts,
            picture_sizes=tuple(picture.size for picture in pictures),
        )

    def _renderer(self) -> ChatRenderer | None:
        """The renderer of the checkpoint's own template, where the bundle has one."""
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
    return {config.image_token, *family_of(config).around_picture(config)}


def _ids(
    config: ProcessorConfig, encoder: Encoder, prompt: Prompt, visual_counts: Sequence[int]
) -> tuple[Array, Array]:
    """input_ids int32 [T] and visual_index int32 [V] of a prompt whose pictures have so many visual tokens each.

    The official code encodes the text with all tokens in it at once. Special tokens split a text, so what stands
    between two of them can be encoded by itself, and is text whatever it spells.
    """
    family = family_of(config)
    front, back = ([], []) if family.HAS_OWN_ENDS or prompt.is_complete else encoder.surrounding()
    around = [encoder.pieces([Special(name)]) for name in family.around_picture(config)] or [[], []]
    ids: list[int | None] = list(front)
    visual: list[int] = []
    counts = iter(visual_counts)
    for piece in prompt.pieces:
        if piece is Marker.IMAGE:
            start, end = around
            count = next(counts)
            visual += range(len(ids) + len(start), len(ids) + len(start) + count)
            ids += [*start, *[config.image_token_id] * count, *end]
        elif isinstance(piece, Marker):
            ids.append(family.marker_id(config, piece))
        else:
            ids += encoder.pieces([piece])
    return np.array([*ids, *back], np.int32), np.array(visual, np.int32)
