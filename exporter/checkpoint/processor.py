# SPDX-License-Identifier: Apache-2.0
"""Reads what preprocessing needs from the files of a checkpoint directory."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from fastmmoe.exporter.checkpoint.chat_template import BUILTIN, choose_template
from fastmmoe.exporter.checkpoint.config_reader import ConfigReader, is_same, shown
from fastmmoe.exporter.checkpoint.side_files import PREPROCESSOR, PROCESSOR, TOKENIZER_CONFIG, SideFiles
from fastmmoe.exporter.checkpoint.tokenizer_files import TOKENIZER, check_encoding, read_tokenizer, stop_ids, token_name
from fastmmoe.runtime.errors import UnsupportedModel
from fastmmoe.runtime.ranges import PatchCount, Pixels, Positions, Tiles, TokenId, WidthRatio
from fastmmoe.runtime.request.config import DeepseekVl2ProcessorConfig, InternVlProcessorConfig, ProcessorConfig, Rgb
from fastmmoe.runtime.types import Say

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Tokens that DeepSeek-VL2's processor adds, after the padding and the image token, where the tokenizer lacks them.
DEEPSEEK_ADDED_TOKENS = ("<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>", "<|grounding|>", "<|User|>", "<|Assistant|>")

# InternVL: language model -> (template, token that ends an answer).
INTERNVL_TEMPLATES: dict[str, tuple[Literal["internvl2_5", "internvl3_5_gpt_oss"], str]] = {
    "qwen3_moe": ("internvl2_5", "<|im_end|>"),
    "gpt_oss": ("internvl3_5_gpt_oss", "<|return|>"),
}
INTERNVL_TOKENS = ("<IMG_CONTEXT>", "<img>", "</img>")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
BICUBIC = 3


def read_processor_config(
    model_dir: Path,
    config: ConfigReader,
    *,
    vocab_size: int,
    chat_template: str = BUILTIN,
    say: Say = lambda _: None,
) -> ProcessorConfig:
    """The record of preprocessing, from all files of the checkpoint.

    Args:
        model_dir: holds tokenizer.json and the files that exporter/checkpoint/side_files.py names, where present.
        config: reads config.json.
        vocab_size: rows of the embedding.
        chat_template: BUILTIN or CHECKPOINT.
        say: is called with a line for what the files say and this program does not follow.
    Raises:
        UnsupportedModel: a file is damaged, a value is missing or not implemented, or two files contradict each other.
    Source: DeepSeek-VL2's processor; InternVL's chat(), and its processor in transformers.
    """
    family = config.require("model_type", str)
    files = SideFiles(model_dir)
    result: ProcessorConfig
    if family == "deepseek_vl_v2":
        result = _read_deepseek_vl2(files, config, vocab_size)
    elif family in ("internvl", "internvl_chat"):
        result = _read_internvl_once(files, config, vocab_size)
    else:
        raise UnsupportedModel(
            f"config.json: model_type is {family!r}; supported: 'deepseek_vl_v2', 'internvl', 'internvl_chat'"
        )
    ids = [result.image_token_id, result.bos_token_id, result.pad_token_id, *result.stop_token_ids]
    outside = [i for i in ids if i is not None and not 0 <= i < vocab_size]
    if outside:
        raise UnsupportedModel(f"token ids {outside}: expected ids from 0 to {vocab_size - 1}, the vocabulary's last")
    files.finish(say)
    if files.has(TOKENIZER):
        check_encoding(result, model_dir / TOKENIZER)
    template, line = choose_template(files, result, chat_template)
    if line is not None:
        say(line)
    return msgspec.structs.replace(result, chat_template=template)


def _read_deepseek_vl2(files: SideFiles, config: ConfigReader, vocab_size: int) -> DeepseekVl2ProcessorConfig:
    processor = files[PROCESSOR]
    config.choice("tile_tag", ["2D"], "2D")
    processor.choice("sft_format", ["deepseek"], "deepseek")
    processor.choice("normalize", [True], True)
    resolutions = _read_resolutions(config, processor)
    mean = _read_mean(processor, (0.5, 0.5, 0.5))
    # The colour of the bars beside a picture is the mean, as 8 bits.
    processor.check("image_mean", list(mean), 0 <= min(mean) <= max(mean) <= 1, "three numbers from 0 to 1")
    image_token = _read_token(processor, "image_token", "<image>")
    own_pad_token = _read_token(processor, "pad_token", "<｜▁pad▁｜>")
    pad_token = token_name(files, "pad_token") or own_pad_token
    tokenizer, special_tokens = read_tokenizer(files, (pad_token, image_token, *DEEPSEEK_ADDED_TOKENS), vocab_size)
    files[TOKENIZER_CONFIG].ignore("add_bos_token", "add_eos_token")  # the processor encodes without
    language = config.section("language_config")
    bos, eos = (_deepseek_token_id(name, files, language, tokenizer) for name in ("bos_token", "eos_token"))
    stops = stop_ids(files, config, language, tokenizer)
    return DeepseekVl2ProcessorConfig(
        candidate_resolutions=resolutions,
        patch_size=_agreed(config.section("vision_config"), "patch_size", 16, Pixels, processor),
        downsample_ratio=_agreed(config.section("projector_config"), "downsample_ratio", 2, PatchCount, processor),
        image_mean=mean,
        image_std=_read_std(processor, (0.5, 0.5, 0.5)),
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


def _deepseek_token_id(name: str, files: SideFiles, language: ConfigReader, tokenizer: Tokenizer | None) -> int | None:
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


def _read_internvl_once(files: SideFiles, config: ConfigReader, vocab_size: int) -> InternVlProcessorConfig:
    """The configuration, the same one whichever description of the image processor is read."""
    results = [_read_internvl(files, config, vocab_size, reader) for reader in files.image_processors()]
    first, other = results[0], results[-1]
    differing = [name for name in first.__struct_fields__ if getattr(first, name) != getattr(other, name)]
    if differing:
        values = " and ".join(shown(getattr(result, differing[0])) for result in results)
        raise UnsupportedModel(
            f"{PREPROCESSOR} and the image_processor of {PROCESSOR} differ in {', '.join(differing)} ({values}): some "
            "versions of transformers read one, some the other: remove the one that is not meant"
        )
    return first


def _read_internvl(
    files: SideFiles, config: ConfigReader, vocab_size: int, preprocessor: ConfigReader
) -> InternVlProcessorConfig:
    is_original = config.get("model_type", "") == "internvl_chat"
    text = config.section("llm_config" if is_original else "text_config")
    template, stop_token = INTERNVL_TEMPLATES[text.choice("model_type", list(INTERNVL_TEMPLATES), "")]
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
        image_mean=_read_mean(preprocessor, IMAGENET_MEAN),
        image_std=_read_std(preprocessor, IMAGENET_STD),
        template=template,
        image_token=INTERNVL_TOKENS[0],
        image_start_token=INTERNVL_TOKENS[1],
        image_end_token=INTERNVL_TOKENS[2],
        image_token_id=_internvl_image_token_id(config, tokenizer),
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


def _internvl_image_token_id(config: ConfigReader, tokenizer: Tokenizer | None) -> int:
    from_config = config.get("image_token_id", None, TokenId | None)
    if tokenizer is None:
        if from_config is None:
            raise UnsupportedModel(
                f"the id of {INTERNVL_TOKENS[0]} is unknown: config.json has no image_token_id and there is no "
                "tokenizer.json; take it from the main branch of the same model's repository that ends in -HF, or let "
                "transformers write it: AutoTokenizer.from_pretrained(DIR, use_fast=True).save_pretrained(DIR)"
            )
        return from_config
    from_tokenizer, *_ = [_required_id(tokenizer, token) for token in INTERNVL_TOKENS]
    if from_config not in (None, from_tokenizer):
        raise UnsupportedModel(
            f"{INTERNVL_TOKENS[0]}: config.json has image_token_id {from_config}, tokenizer.json has {from_tokenizer}"
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


def _agreed(config: ConfigReader, key: str, default: int, kind: Any, processor: ConfigReader) -> int:
    """A number that config.json and the processor's file must agree on, where both have it."""
    value: int = config.get(key, default, kind)
    other = processor.get(key, value, kind)
    if other != value:
        raise UnsupportedModel(f"{key}: config.json means {value}, {processor.file} has {other}; they must be equal")
    return value


def _read_mean(reader: ConfigReader, default: Rgb) -> Rgb:
    return _read_rgb(reader, "image_mean", default, -1e6, "three numbers from -1e6 to 1e6")


def _read_std(reader: ConfigReader, default: Rgb) -> Rgb:
    # Pixels are divided by it in float32.
    return _read_rgb(reader, "image_std", default, 1e-6, "three numbers from 1e-6 to 1e6")


def _read_rgb(reader: ConfigReader, key: str, default: Rgb, least: float, expected: str) -> Rgb:
    values = reader.get(key, list(default), list[float])
    reader.check(key, values, len(values) == 3 and all(least <= value <= 1e6 for value in values), expected)
    return float(values[0]), float(values[1]), float(values[2])


def _read_token(reader: ConfigReader, key: str, default: str) -> str:
    token = reader.get(key, default)
    return reader.check(key, token, 1 <= len(token) <= 1024, "a token of 1 to 1024 characters")


def _required_id(tokenizer: Tokenizer, token: str) -> int:
    token_id = tokenizer.token_to_id(token)
    if token_id is None:
        raise UnsupportedModel(f"tokenizer.json has no token {token}; take the file of the same checkpoint")
    return token_id
