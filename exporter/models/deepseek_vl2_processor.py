# SPDX-License-Identifier: Apache-2.0
"""What the files of a DeepSeek-VL2 checkpoint say of preprocessing.

Source: the processor of the official code (deepseek-ai/DeepSeek-VL2).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastmmoe.exporter.checkpoint.config_reader import ConfigReader
from fastmmoe.exporter.checkpoint.normalisation import read_mean, read_std
from fastmmoe.exporter.checkpoint.side_files import PROCESSOR, TOKENIZER_CONFIG, SideFiles
from fastmmoe.exporter.checkpoint.tokenizer_files import read_tokenizer, stop_ids, token_name
from fastmmoe.runtime.errors import UnsupportedModel
from fastmmoe.runtime.ranges import PatchCount, Pixels, Positions, TokenId
from fastmmoe.runtime.request.config import DeepseekVl2ProcessorConfig

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Tokens that the official processor adds, after the padding and the image token, where the tokenizer lacks them.
ADDED_TOKENS = ("<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>", "<|grounding|>", "<|User|>", "<|Assistant|>")


def read_processor(files: SideFiles, config: ConfigReader, vocab_size: int) -> DeepseekVl2ProcessorConfig:
    """The record of preprocessing; see `family.Family`."""
    processor = files[PROCESSOR]
    config.choice("tile_tag", ["2D"], "2D")
    processor.choice("sft_format", ["deepseek"], "deepseek")
    processor.choice("normalize", [True], True)
    resolutions = _read_resolutions(config, processor)
    mean = read_mean(processor, (0.5, 0.5, 0.5))
    # The colour of the bars beside a picture is the mean, as 8 bits.
    processor.check("image_mean", list(mean), 0 <= min(mean) <= max(mean) <= 1, "three numbers from 0 to 1")
    image_token = _read_token(processor, "image_token", "<image>")
    own_pad_token = _read_token(processor, "pad_token", "<｜▁pad▁｜>")
    pad_token = token_name(files, "pad_token") or own_pad_token
    tokenizer, special_tokens = read_tokenizer(files, (pad_token, image_token, *ADDED_TOKENS), vocab_size)
    files[TOKENIZER_CONFIG].ignore("add_bos_token", "add_eos_token")  # the processor encodes without
    language = config.section("language_config")
    bos, eos = (_token_id(name, files, language, tokenizer) for name in ("bos_token", "eos_token"))
    stops = stop_ids(files, config, language, tokenizer)
    return DeepseekVl2ProcessorConfig(
        candidate_resolutions=resolutions,
        patch_size=_agreed(config.section("vision_config"), "patch_size", 16, Pixels, processor),
        downsample_ratio=_agreed(config.section("projector_config"), "downsample_ratio", 2, PatchCount, processor),
        image_mean=mean,
        image_std=read_std(processor, (0.5, 0.5, 0.5)),
        pad_color=(int(mean[0] * 255), int(mean[1] * 255), int(mean[2] * 255)),
        global_view_first=config.choice("global_view_pos", ["head", "tail"], "head") == "head",
        template="deepseek",
        image_token=image_token,
        image_token_id=tokenizer.token_to_id(image_token) if tokenizer else None,
        bos_token_id=bos,
        eos_token_id=eos,
        pad_token_id=tokenizer.token_to_id(pad_token) if tokenizer else None,
        special_tokens=special_tokens,
        stop_token_ids=tuple(dict.fromkeys([*([] if eos is None else [eos]), *stops])),
        vocab_size=vocab_size,
        max_position_embeddings=language.get("max_position_embeddings", 2048, Positions),
    )


def _read_resolutions(config: ConfigReader, processor: ConfigReader) -> tuple[tuple[int, int], ...]:
    """The candidates of both files; all are multiples of the tile, and the tile alone is among them."""
    found = config.get("candidate_resolutions", [[384, 384]], list[list[Pixels]])
    other = processor.get("candidate_resolutions", found, list[list[Pixels]])
    if found != other:
        raise UnsupportedModel(
            f"candidate_resolutions: config.json has {found}, processor_config.json has {other}; they must be equal"
        )
    tile = config.section("vision_config").get("image_size", 384, Pixels)
    is_grid = all(len(pair) == 2 and pair[0] % tile == pair[1] % tile == 0 for pair in found)
    if not is_grid or [tile, tile] not in found or found[0][0] != tile:
        raise UnsupportedModel(
            f"candidate_resolutions {found}: expected pairs of multiples of the vision tower's image_size {tile}, "
            f"the first of that width, [{tile}, {tile}] among them"
        )
    return tuple((width, height) for width, height in found)


def _token_id(name: str, files: SideFiles, language: ConfigReader, tokenizer: Tokenizer | None) -> int | None:
    """The id of bos_token or eos_token from the tokenizer, else from config.json; they must agree."""
    from_config = language.get(f"{name}_id", None, TokenId | None)
    token = token_name(files, name)
    if tokenizer is None:
        return from_config
    from_tokenizer = None if token is None else tokenizer.token_to_id(token)
    if token is not None and from_tokenizer is None:
        raise UnsupportedModel(f"tokenizer_config.json: {name} is {token!r}, which tokenizer.json does not have")
    if None not in (from_config, from_tokenizer) and from_config != from_tokenizer:
        raise UnsupportedModel(
            f"{name}: config.json has the id {from_config}, tokenizer.json has {from_tokenizer} for {token!r}"
        )
    if from_config is None and from_tokenizer is None:
        raise UnsupportedModel(f"{name}: neither tokenizer_config.json nor config.json names it")
    return from_config if from_tokenizer is None else from_tokenizer


def _agreed(config: ConfigReader, key: str, default: int, kind: Any, processor: ConfigReader) -> int:
    """A number that config.json and the processor's file must agree on, where both have it."""
    value: int = config.get(key, default, kind)
    other = processor.get(key, value, kind)
    if other != value:
        raise UnsupportedModel(f"{key}: config.json means {value}, {processor.file} has {other}; they must be equal")
    return value


def _read_token(reader: ConfigReader, key: str, default: str) -> str:
    token = reader.get(key, default)
    return reader.check(key, token, 1 <= len(token) <= 1024, "a token of 1 to 1024 characters")
