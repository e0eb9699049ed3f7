# SPDX-License-Identifier: Apache-2.0
"""What the files of an InternVL3.5 checkpoint say of preprocessing, of the original and of the Hugging Face layout.

Source: chat() of the official code (OpenGVLab/InternVL), and its processor in transformers.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

from fastmmoe.exporter.checkpoint.config_reader import ConfigReader, is_same, shown
from fastmmoe.exporter.checkpoint.normalisation import read_mean, read_std
from fastmmoe.exporter.checkpoint.side_files import PREPROCESSOR, PROCESSOR, SideFiles
from fastmmoe.exporter.checkpoint.tokenizer_files import read_tokenizer, stop_ids
from fastmmoe.runtime.errors import UnsupportedModel
from fastmmoe.runtime.ranges import Pixels, Positions, Tiles, TokenId, WidthRatio
from fastmmoe.runtime.request.config import InternVlProcessorConfig

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Language model -> (template, token that ends an answer).
TEMPLATES: dict[str, tuple[Literal["internvl2_5", "internvl3_5_gpt_oss"], str]] = {
    "qwen3_moe": ("internvl2_5", "<|im_end|>"),
    "gpt_oss": ("internvl3_5_gpt_oss", "<|return|>"),
}
TOKENS = ("<IMG_CONTEXT>", "<img>", "</img>")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
BICUBIC = 3


def read_processor(files: SideFiles, config: ConfigReader, vocab_size: int) -> InternVlProcessorConfig:
    """The configuration, the same one whichever description of the image processor is read."""
    results = [_read(files, config, vocab_size, reader) for reader in files.image_processors()]
    first, other = results[0], results[-1]
    differing = [name for name in first.__struct_fields__ if getattr(first, name) != getattr(other, name)]
    if differing:
        values = " and ".join(shown(getattr(result, differing[0])) for result in results)
        raise UnsupportedModel(
            f"{PREPROCESSOR} and the image_processor of {PROCESSOR} differ in {', '.join(differing)} ({values}): some "
            "versions of transformers read one, some the other: remove the one that is not meant"
        )
    return first


def _read(
    files: SideFiles, config: ConfigReader, vocab_size: int, preprocessor: ConfigReader
) -> InternVlProcessorConfig:
    is_original = config.get("model_type", "") == "internvl_chat"
    text = config.section("llm_config" if is_original else "text_config")
    template, stop_token = TEMPLATES[text.choice("model_type", list(TEMPLATES), "")]
    for key, value in (("resample", BICUBIC), ("do_resize", True), ("do_rescale", True), ("do_normalize", True)):
        preprocessor.choice(key, [value], value)
    # The original code cuts pictures itself, whatever this file says of its crops and scale.
    preprocessor.choice("do_center_crop", [False, None, *([True] if is_original else [])], None)
    factor = preprocessor.get("rescale_factor", 1 / 255, float)
    preprocessor.check("rescale_factor", factor, math.isclose(factor, 1 / 255, rel_tol=1e-6), "1 / 255")
    tokenizer, special_tokens = read_tokenizer(files, (), vocab_size)
    stops = stop_ids(files, config, text, tokenizer)
    if tokenizer is not None:
        stops.insert(0, _required_id(tokenizer, stop_token))
    values = _read_original(config, template) if is_original else _read_hf(config, preprocessor)
    _check_tile_size(preprocessor, values["tile_size"])
    _check_tokens_per_tile(files[PROCESSOR], values["tokens_per_tile"])
    return InternVlProcessorConfig(
        **values,
        image_mean=read_mean(preprocessor, IMAGENET_MEAN),
        image_std=read_std(preprocessor, IMAGENET_STD),
        template=template,
        image_token=TOKENS[0],
        image_start_token=TOKENS[1],
        image_end_token=TOKENS[2],
        image_token_id=_image_token_id(config, tokenizer),
        bos_token_id=text.get("bos_token_id", None, TokenId | None),
        pad_token_id=text.get("pad_token_id", None, TokenId | None),
        special_tokens=special_tokens,
        stop_token_ids=tuple(dict.fromkeys(stops)),
        vocab_size=vocab_size,
        max_position_embeddings=text.require("max_position_embeddings", Positions),
    )


def _read_original(config: ConfigReader, template: str) -> dict[str, Any]:
    """Tiling of the original layout: all of it stands in config.json."""
    if config.require("template", str) != template:
        raise UnsupportedModel(
            f"config.json: template is {config.require('template')!r}, expected {template!r} for the language model "
            f"{config.section('llm_config').require('model_type')!r}"
        )
    config.choice("pad2square", [False], False)
    config.choice("dynamic_image_size", [True], False)
    vision = config.section("vision_config")
    tile = vision.get("image_size", 224, Pixels)
    if config.get("force_image_size", tile, Pixels | None) not in (tile, None):
        raise UnsupportedModel(
            f"config.json: force_image_size is {config.get('force_image_size', tile)}, expected the vision tower's "
            f"image_size {tile}: interpolated position embeddings are not implemented"
        )
    return {
        "tile_size": tile,
        "tokens_per_tile": _tokens_per_tile(config, tile, vision.get("patch_size", 14, Pixels)),
        **_tile_bounds(config, "min_dynamic_patch", "max_dynamic_patch", 6),
        "use_thumbnail": config.get("use_thumbnail", False),
    }


def _read_hf(config: ConfigReader, preprocessor: ConfigReader) -> dict[str, Any]:
    """Tiling of the Hugging Face layout; crop_to_patches is off in its file and switched on by its processor."""
    vision = config.section("vision_config")
    tile = _square(vision, "image_size", 448)
    tokens = _tokens_per_tile(config, tile, _square(vision, "patch_size", 14))
    if config.get("image_seq_length", tokens) != tokens:
        raise UnsupportedModel(
            f"config.json: image_seq_length is {config.get('image_seq_length', tokens)}, expected {tokens} from "
            "image_size, patch_size and downsample_ratio"
        )
    return {
        "tile_size": tile,
        "tokens_per_tile": tokens,
        **_tile_bounds(preprocessor, "min_patches", "max_patches", 12),
        "use_thumbnail": True,
    }


def _tile_bounds(reader: ConfigReader, low: str, high: str, default: int) -> dict[str, int]:
    least, most = reader.get(low, 1, Tiles), reader.get(high, default, Tiles)
    reader.check(low, least, least <= most, f"at most {high}, which is {most}")
    return {"min_tiles": least, "max_tiles": most}


def _image_token_id(config: ConfigReader, tokenizer: Tokenizer | None) -> int:
    from_config = config.get("image_token_id", None, TokenId | None)
    if tokenizer is None:
        if from_config is None:
            raise UnsupportedModel(
                f"the id of {TOKENS[0]} is unknown: config.json has no image_token_id and there is no "
                "tokenizer.json; take it from the main branch of the same model's repository that ends in -HF, or let "
                "transformers write it: AutoTokenizer.from_pretrained(DIR, use_fast=True).save_pretrained(DIR)"
            )
        return from_config
    from_tokenizer, *_ = [_required_id(tokenizer, token) for token in TOKENS]
    if from_config not in (None, from_tokenizer):
        raise UnsupportedModel(
            f"{TOKENS[0]}: config.json has image_token_id {from_config}, tokenizer.json has {from_tokenizer}"
        )
    return from_tokenizer


def _tokens_per_tile(config: ConfigReader, tile: int, patch: int) -> int:
    ratio = config.get("downsample_ratio", 0.5, WidthRatio)
    tokens = int((tile // patch) ** 2 * ratio**2)
    config.check(
        "downsample_ratio", ratio, tokens >= 1, f"at least one token for a tile of {tile} and patches of {patch}"
    )
    return tokens


def _square(reader: ConfigReader, key: str, default: int) -> int:
    """A side given as a number or as two equal ones."""
    value = reader.get(key, default, Pixels | list[Pixels])
    sides = [value, value] if isinstance(value, int) else value
    if len(sides) != 2 or sides[0] != sides[1]:
        raise UnsupportedModel(f"{reader.file}: {key} is {value}, expected one side or two equal ones")
    return sides[0]


def _check_tile_size(preprocessor: ConfigReader, tile: int) -> None:
    """The image processor's size is a number or an object of numbers."""
    size = preprocessor.get("size", tile, int | dict)
    sides = list(size.values()) if isinstance(size, dict) else [size]
    if not sides or not all(is_same(side, tile) for side in sides):
        raise UnsupportedModel(f"{preprocessor.file}: size is {shown(size)}, config.json has tiles of {tile} pixels")


def _check_tokens_per_tile(processor: ConfigReader, tokens: int) -> None:
    for key in ("image_seq_length", "image_seq_len"):
        value = processor.get(key, tokens)
        processor.check(key, value, value == tokens, f"{tokens}, which config.json gives a tile")


def _required_id(tokenizer: Tokenizer, token: str) -> int:
    token_id = tokenizer.token_to_id(token)
    if token_id is None:
        raise UnsupportedModel(f"tokenizer.json has no token {token}; take the file of the same checkpoint")
    return token_id
