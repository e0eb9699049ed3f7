# SPDX-License-Identifier: Apache-2.0
"""Messages, or the official processors' tensors, to the inputs of the graphs; token ids back to text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastmmoe.runtime.errors import BundleMismatch, InvalidRequest
from fastmmoe.runtime.image_reader import open_image
from fastmmoe.runtime.images import deepseek_vl2_tiles, internvl_tiles
from fastmmoe.runtime.model_inputs import (
    ModelInputs,
    check_length,
    deepseek_vl2_tensor_inputs,
    deepseek_vl2_vision_inputs,
    internvl_tensor_inputs,
)
from fastmmoe.runtime.processor_config import DeepseekVl2ProcessorConfig, InternVlProcessorConfig, ProcessorConfig
from fastmmoe.runtime.prompts import IMAGE_PLACEHOLDER, Marker, Messages, Prompt, render_follow_up, render_prompt

if TYPE_CHECKING:
    from PIL.Image import Image
    from tokenizers import Tokenizer

# DeepSeek-VL2's processor cuts pictures into tiles only in conversations with at most so many of them.
MAX_TILED_IMAGES = 2

# gpt-oss writes "<|channel|>final<|message|>" in front of an answer: tokens from one of the first to the second.
HEADER_STARTS = {"internvl3_5_gpt_oss": ("<|start|>", "<|channel|>")}
HEADER_END = "<|message|>"


def load_tokenizer(file: Path, special_tokens: Sequence[str] = ()) -> Tokenizer:
    """The tokenizer, with the special tokens it lacks added in the order given.

    Raises:
        BundleMismatch: the file cannot be read as a tokenizer.json.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(file.read_text(encoding="utf-8"))
    # The library has no exception of its own: it raises Exception for a file that it cannot parse.
    except Exception as error:
        raise BundleMismatch(f"{file}: cannot be read as a tokenizer.json ({error})") from error
    tokenizer.add_special_tokens(list(special_tokens))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


class _HeaderFilter:
    """Tells the tokens of gpt-oss's channel headers from those of the answer; other templates have no headers."""

    def __init__(self, tokenizer: Tokenizer, template: str) -> None:
        self._starts = {tokenizer.token_to_id(token) for token in HEADER_STARTS.get(template, ())}
        self._end = tokenizer.token_to_id(HEADER_END)
        self._is_inside = False

    def keeps(self, token_id: int) -> bool:
        """Whether this, the next token of the sequence, belongs to the answer."""
        if token_id in self._starts:
            self._is_inside = True
        if not self._is_inside:
            return True
        self._is_inside = token_id != self._end
        return False


class TokenStream:
    """Text of one answer, token by token, without special tokens and channel headers."""

    def __init__(self, tokenizer: Tokenizer, template: str) -> None:
        from tokenizers.decoders import DecodeStream

        self._tokenizer = tokenizer
        self._filter = _HeaderFilter(tokenizer, template)
        self._stream = DecodeStream(skip_special_tokens=True)

    def push(self, token_id: int) -> str:
        """The text that this token completes; "" in the middle of a character."""
        if not self._filter.keeps(int(token_id)):
            return ""
        return self._stream.step(self._tokenizer, int(token_id)) or ""


class Processor:
    """Preprocessing of one checkpoint, equal to its official processor.

    Args:
        config: from the bundle. tokenizer_file: tokenizer.json, or None where only tensors will be given.
    Raises:
        BundleMismatch: the tokenizer cannot be read, or gives the image token another id than `config`.
    """

    def __init__(self, config: ProcessorConfig, tokenizer_file: Path | None) -> None:
        self.config = config
        self._tokenizer: Tokenizer | None = None
        if tokenizer_file is not None:
            added = config.special_tokens if isinstance(config, DeepseekVl2ProcessorConfig) else ()
            self._tokenizer = load_tokenizer(tokenizer_file, added)
            found = self._tokenizer.token_to_id(config.image_token)
            if found != config.image_token_id:
                raise BundleMismatch(
                    f"{tokenizer_file}: {config.image_token} has the id {found}, the bundle's manifest says "
                    f"{config.image_token_id}; take both from one export"
                )

    def __call__(self, messages: Messages, *, max_tiles: int | None = None) -> ModelInputs:
        """Inputs of one conversation.

        Args:
            messages: Hugging Face schema, see `render_prompt`; pictures as in `open_image`.
            max_tiles: the most local tiles of a picture; None = the checkpoint's.
        Raises:
            InvalidRequest: the messages, a picture or max_tiles are not legal, the sequence is too long, or there is
                no tokenizer.
        """
        prompt = render_prompt(messages, self.config.template, self._placeholders())
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
        prompt = render_follow_up(content, self.config.template, self._placeholders())
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
        if isinstance(self.config, DeepseekVl2ProcessorConfig):
            return deepseek_vl2_tensor_inputs(tensors, self.config)
        return internvl_tensor_inputs(tensors, self.config)

    def new_stream(self) -> TokenStream:
        """A decoder for one answer. Raises InvalidRequest if there is no tokenizer."""
        return TokenStream(self._require_tokenizer(), self.config.template)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of a whole answer, as `new_stream` gives it. Raises InvalidRequest if there is no tokenizer."""
        tokenizer = self._require_tokenizer()
        header = _HeaderFilter(tokenizer, self.config.template)
        return tokenizer.decode([int(i) for i in ids if header.keeps(int(i))], skip_special_tokens=True)

    def _placeholders(self) -> list[str]:
        return list(dict.fromkeys([IMAGE_PLACEHOLDER, self.config.image_token]))

    def _inputs(
        self, prompt: Prompt, max_tiles: int | None, images_before: int = 0, tokens_before: int = 0
    ) -> ModelInputs:
        tokenizer = self._require_tokenizer()
        images = [open_image(image) for image in prompt.images]
        if isinstance(self.config, DeepseekVl2ProcessorConfig):
            tiled = images_before + len(images) <= MAX_TILED_IMAGES
            inputs = _deepseek_vl2_inputs(self.config, tokenizer, prompt, images, max_tiles, tiled=tiled)
        else:
            inputs = _internvl_inputs(self.config, tokenizer, prompt, images, max_tiles)
        return check_length(inputs, self.config, tokens_before)

    def _require_tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            raise InvalidRequest(
                "there is no tokenizer: the checkpoint was exported without a tokenizer.json; give ready-made tensors, "
                "or export again with the file in the checkpoint directory"
            )
        return self._tokenizer


def _deepseek_vl2_inputs(
    config: DeepseekVl2ProcessorConfig,
    tokenizer: Tokenizer,
    prompt: Prompt,
    images: Sequence[Image],
    max_tiles: int | None,
    *,
    tiled: bool,
) -> ModelInputs:
    """Text pieces are encoded one by one and pictures stand between them as ids, as in the official processor."""
    tiles = [deepseek_vl2_tiles(image, config, tiled=tiled, max_tiles=max_tiles) for image in images]
    grids = [grid for _, grid in tiles]
    side = config.grid_side
    visual_counts = iter([side * (side + 1) + 1 + high * side * (wide * side + 1) for wide, high in grids])
    ids: list[int | None] = []
    is_visual: list[bool] = []
    for piece in prompt.pieces:
        if piece is Marker.IMAGE:
            added: list[int | None] = [config.image_token_id] * next(visual_counts)
        elif isinstance(piece, Marker):
            added = [config.bos_token_id if piece is Marker.BOS else config.eos_token_id]
        else:
            added = list(tokenizer.encode(piece, add_special_tokens=False).ids)
        ids += added
        is_visual += [piece is Marker.IMAGE] * len(added)
    pixels = np.concatenate([p for p, _ in tiles]) if tiles else None
    return ModelInputs(
        input_ids=np.array(ids, np.int32),
        visual_index=np.flatnonzero(is_visual).astype(np.int32),
        vision_inputs={} if pixels is None else deepseek_vl2_vision_inputs(config, pixels, grids),
        tile_counts=tuple(len(p) for p, _ in tiles),
        image_sizes=tuple(image.size for image in images),
    )


def _internvl_inputs(
    config: InternVlProcessorConfig,
    tokenizer: Tokenizer,
    prompt: Prompt,
    images: Sequence[Image],
    max_tiles: int | None,
) -> ModelInputs:
    """The whole text is encoded at once, image tokens written out in it, as in the official code."""
    tiles = [internvl_tiles(image, config, max_tiles=max_tiles) for image in images]
    counts = iter([len(pixels) * config.tokens_per_tile for pixels in tiles])
    text = ""
    for piece in prompt.pieces:
        if piece is Marker.IMAGE:
            text += config.image_start_token + config.image_token * next(counts) + config.image_end_token
        else:
            text += str(piece)
    ids = np.array(tokenizer.encode(text, add_special_tokens=not prompt.is_follow_up).ids, np.int32)
    return ModelInputs(
        input_ids=ids,
        visual_index=np.flatnonzero(ids == config.image_token_id).astype(np.int32),
        vision_inputs={"pixel_values": np.concatenate(tiles)} if tiles else {},
        tile_counts=tuple(len(pixels) for pixels in tiles),
        image_sizes=tuple(image.size for image in images),
    )
