# SPDX-License-Identifier: Apache-2.0
"""Reads what preprocessing needs from the files of a checkpoint directory."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fastmmoe.exporter.config_reader import ConfigReader
from fastmmoe.runtime.errors import BundleMismatch, UnsupportedModel
from fastmmoe.runtime.processor import load_tokenizer
from fastmmoe.runtime.processor_config import DeepseekVl2ProcessorConfig, InternVlProcessorConfig, ProcessorConfig, Rgb
from fastmmoe.runtime.ranges import PatchCount, Pixels, Positions, Tiles, TokenId

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


def read_processor_config(model_dir: Path, config: ConfigReader, *, vocab_size: int) -> ProcessorConfig:
    """What preprocessing needs, from all files of the checkpoint.

    Args:
        model_dir: holds, where present, processor_config.json, preprocessor_config.json, tokenizer.json,
            tokenizer_config.json and generation_config.json.
        config: of config.json. vocab_size: rows of the embedding.
    Raises:
        UnsupportedModel: a file is damaged, a value is missing or not implemented, or two files contradict each other.
    Source: DeepSeek-VL2's processor; InternVL's chat(), and its processor in transformers.
    """
    family = config.require("model_type", str)
    result: ProcessorConfig
    if family == "deepseek_vl_v2":
        result = _read_deepseek_vl2(model_dir, config, vocab_size)
    elif family in ("internvl", "internvl_chat"):
        result = _read_internvl(model_dir, config, vocab_size)
    else:
        raise UnsupportedModel(
            f"config.json: model_type is {family!r}; supported: 'deepseek_vl_v2', 'internvl', 'internvl_chat'"
        )
    ids = [result.image_token_id, result.bos_token_id, result.pad_token_id, *result.stop_token_ids]
    outside = [i for i in ids if i is not None and not 0 <= i < vocab_size]
    if outside:
        raise UnsupportedModel(f"token ids {outside}: expected ids from 0 to {vocab_size - 1}, the vocabulary's last")
    return result


def _read_deepseek_vl2(model_dir: Path, config: ConfigReader, vocab_size: int) -> DeepseekVl2ProcessorConfig:
    processor = _read_file(model_dir, "processor_config.json")
    config.choice("tile_tag", ["2D"], "2D")
    processor.choice("sft_format", ["deepseek"], "deepseek")
    processor.choice("normalize", [True], True)
    resolutions = _read_resolutions(config, processor)
    mean = _read_rgb(processor, "image_mean", (0.5, 0.5, 0.5))
    image_token = processor.get("image_token", "<image>")
    names = _read_file(model_dir, "tokenizer_config.json")
    pad_token = _token_name(names, "pad_token") or processor.get("pad_token", "<｜▁pad▁｜>")
    special_tokens = (pad_token, image_token, *DEEPSEEK_ADDED_TOKENS)
    tokenizer = _read_tokenizer(model_dir, special_tokens, vocab_size)
    language = config.section("language_config")
    eos = _deepseek_token_id("eos_token", names, language, tokenizer)
    return DeepseekVl2ProcessorConfig(
        candidate_resolutions=resolutions,
        patch_size=_agreed(config.section("vision_config"), "patch_size", 16, Pixels, processor),
        downsample_ratio=_agreed(config.section("projector_config"), "downsample_ratio", 2, PatchCount, processor),
        image_mean=mean,
        image_std=_read_rgb(processor, "image_std", (0.5, 0.5, 0.5)),
        pad_color=(int(mean[0] * 255), int(mean[1] * 255), int(mean[2] * 255)),
        global_view_first=config.get("global_view_pos", "head") == "head",
        template="deepseek",
        image_token=image_token,
        image_token_id=tokenizer.token_to_id(image_token) if tokenizer else None,
        bos_token_id=_deepseek_token_id("bos_token", names, language, tokenizer),
        eos_token_id=eos,
        pad_token_id=tokenizer.token_to_id(pad_token) if tokenizer else None,
        special_tokens=special_tokens,
        stop_token_ids=() if eos is None else (eos,),
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


def _deepseek_token_id(
    name: str, names: ConfigReader, language: ConfigReader, tokenizer: Tokenizer | None
) -> int | None:
    """The id of bos_token or eos_token from the tokenizer, else from config.json; they must agree."""
    from_config = language.get(f"{name}_id", None, TokenId | None)
    token = _token_name(names, name)
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


def _read_internvl(model_dir: Path, config: ConfigReader, vocab_size: int) -> InternVlProcessorConfig:
    is_original = config.get("model_type", "") == "internvl_chat"
    text = config.section("llm_config" if is_original else "text_config")
    template, stop_token = INTERNVL_TEMPLATES[text.choice("model_type", list(INTERNVL_TEMPLATES), "")]
    preprocessor = _read_preprocessor(model_dir)
    for key, value in (("resample", BICUBIC), ("do_resize", True), ("do_rescale", True), ("do_normalize", True)):
        preprocessor.choice(key, [value], value)
    tokenizer = _read_tokenizer(model_dir, (), vocab_size)
    stop_ids = list(_eos_ids(text)) + list(_eos_ids(_read_file(model_dir, "generation_config.json")))
    if tokenizer is not None:
        stop_ids.insert(0, _required_id(tokenizer, stop_token))
    values = _read_original(config, template) if is_original else _read_hf(config, preprocessor)
    _check_tile_size(preprocessor, values["tile_size"])
    return InternVlProcessorConfig(
        **values,
        image_mean=_read_rgb(preprocessor, "image_mean", IMAGENET_MEAN),
        image_std=_read_rgb(preprocessor, "image_std", IMAGENET_STD),
        template=template,
        image_token=INTERNVL_TOKENS[0],
        image_start_token=INTERNVL_TOKENS[1],
        image_end_token=INTERNVL_TOKENS[2],
        image_token_id=_internvl_image_token_id(config, tokenizer),
        bos_token_id=text.get("bos_token_id", None, TokenId | None),
        pad_token_id=text.get("pad_token_id", None, TokenId | None),
        stop_token_ids=tuple(dict.fromkeys(stop_ids)),
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
        "min_tiles": config.get("min_dynamic_patch", 1, Tiles),
        "max_tiles": config.get("max_dynamic_patch", 6, Tiles),
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
        "min_tiles": preprocessor.get("min_patches", 1, Tiles),
        "max_tiles": preprocessor.get("max_patches", 12, Tiles),
        "use_thumbnail": True,
    }


def _internvl_image_token_id(config: ConfigReader, tokenizer: Tokenizer | None) -> int:
    from_config = config.get("image_token_id", None, TokenId | None)
    if tokenizer is None:
        if from_config is None:
            raise UnsupportedModel(
                f"the id of {INTERNVL_TOKENS[0]} is unknown: config.json has no image_token_id and there is no "
                "tokenizer.json; put it into the checkpoint directory"
            )
        return from_config
    from_tokenizer, *_ = [_required_id(tokenizer, token) for token in INTERNVL_TOKENS]
    if from_config not in (None, from_tokenizer):
        raise UnsupportedModel(
            f"{INTERNVL_TOKENS[0]}: config.json has image_token_id {from_config}, tokenizer.json has {from_tokenizer}"
        )
    return from_tokenizer


def _tokens_per_tile(config: ConfigReader, tile: int, patch: int) -> int:
    return int((tile // patch) ** 2 * config.get("downsample_ratio", 0.5) ** 2)


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
    sides = set(size.values()) if isinstance(size, dict) else {size}
    if sides != {tile}:
        raise UnsupportedModel(f"{preprocessor.file}: size is {size}, config.json has tiles of {tile} pixels")


def _eos_ids(reader: ConfigReader) -> Sequence[int]:
    value = reader.get("eos_token_id", None, TokenId | list[TokenId] | None)
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else value


def _agreed(config: ConfigReader, key: str, default: int, kind: Any, processor: ConfigReader) -> int:
    """A number that config.json and the processor's file must agree on, where both have it."""
    value: int = config.get(key, default, kind)
    other = processor.get(key, value, kind)
    if other != value:
        raise UnsupportedModel(f"{key}: config.json means {value}, {processor.file} has {other}; they must be equal")
    return value


def _read_rgb(reader: ConfigReader, key: str, default: Rgb) -> Rgb:
    values = reader.get(key, list(default), list[float])
    if len(values) != 3:
        raise UnsupportedModel(f"{reader.file}: {key} is {values}, expected three numbers")
    return float(values[0]), float(values[1]), float(values[2])


def _token_name(names: ConfigReader, key: str) -> str | None:
    """A token of tokenizer_config.json, which stands there as a string or as an object with `content`."""
    value = names.get(key, None, str | dict | None)
    return names.section(key).require("content", str) if isinstance(value, dict) else value


def _required_id(tokenizer: Tokenizer, token: str) -> int:
    token_id = tokenizer.token_to_id(token)
    if token_id is None:
        raise UnsupportedModel(f"tokenizer.json has no token {token}; take the file of the same checkpoint")
    return token_id


def _read_tokenizer(model_dir: Path, special_tokens: Sequence[str], vocab_size: int) -> Tokenizer | None:
    file = model_dir / "tokenizer.json"
    if not file.is_file():
        return None
    try:
        tokenizer = load_tokenizer(file, special_tokens)
    except BundleMismatch as error:
        raise UnsupportedModel(str(error)) from error
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
    if largest >= vocab_size:
        raise UnsupportedModel(f"tokenizer.json: ids up to {largest}, expected less than vocab_size {vocab_size}")
    return tokenizer


def _read_preprocessor(model_dir: Path) -> ConfigReader:
    """preprocessor_config.json, or the part of processor_config.json that newer versions write instead."""
    if (model_dir / "preprocessor_config.json").is_file():
        return _read_file(model_dir, "preprocessor_config.json")
    return _read_file(model_dir, "processor_config.json").section("image_processor", optional=True)


def _read_file(model_dir: Path, name: str) -> ConfigReader:
    """A JSON file of the checkpoint; an absent one counts as an empty object."""
    file = model_dir / name
    if not file.is_file():
        return ConfigReader({}, name)
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UnsupportedModel(f"{file}: cannot be read as JSON ({error})") from error
    if not isinstance(values, dict):
        raise UnsupportedModel(f"{file}: holds {type(values).__name__}, expected a JSON object")
    return ConfigReader(values, name)
