# SPDX-License-Identifier: Apache-2.0
"""A model's sizes from config.json and the processor's files; no weight is read, and torch is not imported."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from fastmmoe import __version__
from fastmmoe.exporter.checkpoint.config_reader import ConfigReader
from fastmmoe.exporter.checkpoint.files import CONFIG_FILE, check_directory, parse_object, read_bytes
from fastmmoe.exporter.checkpoint.side_files import SideFiles
from fastmmoe.exporter.checkpoint.tokenizer_files import TOKENIZER
from fastmmoe.exporter.config import DEMO, checkpoint_directory
from fastmmoe.exporter.manifest import experts_info, language_model_info, linears_info, vision_info
from fastmmoe.exporter.models.configs import ModelConfig, config_of
from fastmmoe.exporter.ops.linear.packing import LinearPackings
from fastmmoe.exporter.ops.quantise import Packing
from fastmmoe.exporter.pruning.settings import Layers, PolicyOptions, resolve_policy
from fastmmoe.exporter.targets import activation_dtype
from fastmmoe.runtime.bundle import manifest as bundle
from fastmmoe.runtime.cost.weights import count_weights
from fastmmoe.runtime.errors import UnsupportedModel, did_you_mean
from fastmmoe.runtime.files import real_path
from fastmmoe.runtime.machines.targets import Target
from fastmmoe.runtime.method.policy import Policy
from fastmmoe.runtime.request.config import FamilyName, ProcessorConfig

PUBLISHED = Path(__file__).parent / "published_configs.json"
NO_DIRECTORY = Path("no-directory")
IMAGE_TOKEN = "image_token_id"


@functools.cache
def published_configs() -> dict[str, dict[str, Any]]:
    """Name of a published model -> the keys of its config.json on which its sizes depend."""
    found: dict[str, dict[str, Any]] = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    return found


@dataclass(frozen=True)
class ModelSizes:
    """What is known of a model before its weights.

    Attributes:
        parameters: by part, as `runtime/cost/weights.py` names them.
    """

    name: str
    family: FamilyName
    config: ModelConfig
    processor: ProcessorConfig
    policy: Policy
    parameters: dict[str, int]

    def manifest(
        self, target: Target, dtype: str, cache_dtype: str, packing: Packing | None, linears: LinearPackings
    ) -> bundle.Manifest:
        """The manifest that an export would write, without files."""
        return bundle.Manifest(
            format=bundle.FORMAT,
            fastmmoe_version=__version__,
            model=self.name,
            family=self.family,
            checkpoint_identity="",
            target=target.name,
            # The target has checked them.
            dtype=cast(bundle.Dtype, dtype),
            activation_dtype=cast(bundle.ElementType, activation_dtype(target, dtype)),
            cache_dtype=cast(bundle.ElementType, cache_dtype),
            experts=experts_info(packing, {}),
            linears=linears_info(linears),
            ops={},
            portable=target.is_portable,
            policy=self.policy,
            processor=self.processor,
            vision=vision_info(self.config.vision),
            language_model=language_model_info(self.config),
            files={},
        )


def read_sizes(model: str, options: PolicyOptions | None = None) -> ModelSizes:
    """The sizes of a model.

    Args:
        model: a directory with config.json, and the processor's files where there are any; "demo"; or the name of a
            published model, in any case, with or without its organisation.
        options: of pruning; None = the defaults.
    Raises:
        UnsupportedModel: no such directory or name, or a configuration that an export would refuse, too.
        InvalidRequest: pruning options outside what the model allows.
    """
    values, files, name = _read(model)
    family, reader = config_of(values.get("model_type")), ConfigReader(values)
    config = family.read_config(reader)
    side_files = SideFiles(files)
    # Some layouts name the token of pictures in the tokenizer alone, and no size depends on it.
    ids = {} if side_files.has(TOKENIZER) else {IMAGE_TOKEN: 0}
    processor = family.read_processor(side_files, ConfigReader(ids | values), config.vocab_size)
    layers = Layers(config.num_hidden_layers, config.moe_layers, config.full_attention_layers, config.moe.top_k)
    policy = resolve_policy(options or PolicyOptions(), family=family.name, layers=layers)
    parameters = count_weights(language_model_info(config), vision_info(config.vision), family.count_small(config))
    return ModelSizes(name, family.name, config, processor, policy, parameters)


def _read(model: str) -> tuple[dict[str, Any], Path, str]:
    """Values of config.json, the directory of the other files, the model's name."""
    directory = checkpoint_directory(model)
    by_name = {name.lower(): name for name in published_configs()}
    known = by_name.get(model.rpartition("/")[2].lower())
    if known is not None and not directory.exists():
        return published_configs()[known], NO_DIRECTORY, known
    try:
        check_directory(directory)
    except UnsupportedModel as error:
        if directory.exists():
            raise
        meant = did_you_mean(model.rpartition("/")[2], by_name.values())
        raise UnsupportedModel(f"{error}; names that need none: {', '.join(by_name.values())}{meant}") from None
    values = parse_object(read_bytes(directory / CONFIG_FILE), directory / CONFIG_FILE)
    return values, directory, DEMO if model == DEMO else real_path(directory).name
