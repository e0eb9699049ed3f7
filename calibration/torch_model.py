# SPDX-License-Identifier: Apache-2.0
"""A checkpoint in torch with its values loaded once; decoders with any policy share them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fastmmoe.exporter.check.streamed import empty_cache
from fastmmoe.exporter.check.weights import check_weights
from fastmmoe.exporter.checkpoint.processor import read_processor_config
from fastmmoe.exporter.checkpoint.reader import Checkpoint
from fastmmoe.exporter.manifest import language_model_info
from fastmmoe.exporter.model import FAMILY_BY_MODEL_TYPE, Model, Precision
from fastmmoe.exporter.models.decoder import LanguageModel
from fastmmoe.exporter.pruning.settings import Layers, PolicyOptions, resolve_policy
from fastmmoe.runtime.backends.feeds import NO_VISUAL_TOKENS, Chunk, call_feeds
from fastmmoe.runtime.bundle import graph_io
from fastmmoe.runtime.bundle.manifest import TOKENIZER, LanguageModelInfo
from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.method.policy import Policy
from fastmmoe.runtime.method.schedule import Schedule, plan_request
from fastmmoe.runtime.request.processor import Processor

Array = npt.NDArray[Any]
Outputs = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Decoder:
    """The language model with one policy built in."""

    module: LanguageModel
    policy: Policy


class TorchModel:
    """A checkpoint's modules, float32, with their values.

    Args:
        directory: of the checkpoint.
    Raises:
        UnsupportedModel: see `Checkpoint`, `Model` and `check_weights`.
        InvalidRequest: the checkpoint has no tokenizer.

    Attributes:
        layers: what pruning needs to know of the decoder. info: what its FLOPs depend on.
        processor: from pictures and questions to the inputs of the graphs.
    """

    def __init__(self, directory: Path) -> None:
        checkpoint = Checkpoint(directory)
        self.model = Model(checkpoint, PolicyOptions(), Precision(torch.float32, torch.float32))
        check_weights(self.model, report=lambda _: None)
        self.config, self.family, self.identity = self.model.config, self.model.family, checkpoint.identity
        for graph, module in self.model.graphs.items():
            values = {name: self.model.load(f"{graph}.{name}") for name, _ in module.named_parameters()}
            module.load_state_dict(values, assign=True)
        self._values = self.model.graphs.language_model.state_dict()
        self._build_graphs = FAMILY_BY_MODEL_TYPE[checkpoint.config["model_type"]].build_graphs
        c = self.config
        self.layers = Layers(c.num_hidden_layers, c.moe_layers, c.full_attention_layers, c.moe.top_k)
        tokenizer = checkpoint.path / TOKENIZER
        if not tokenizer.is_file():
            raise InvalidRequest(f"{checkpoint.path}: no {TOKENIZER}: calibration asks in words and needs one")
        config = read_processor_config(checkpoint.path, self.model.config_reader, vocab_size=c.vocab_size)
        self.processor = Processor(config, tokenizer)
        self.info: LanguageModelInfo = language_model_info(c)

    def resolve(self, options: PolicyOptions) -> Policy:
        """The policy of an export with these options."""
        return resolve_policy(options, family=self.family, layers=self.layers)

    def decoder(self, policy: Policy) -> Decoder:
        """The language model with this policy; its parameters are those of every other one."""
        with torch.device("meta"):
            module = self._build_graphs(self.config, policy).language_model
        module.load_state_dict(self._values, assign=True)
        return Decoder(module.eval(), policy)

    def plan(self, policy: Policy, visual_tokens: int, *, method: str | None = None) -> Schedule:
        """The schedule of a prompt at the policy's retention."""
        moe = self.config.moe_layers, self.config.moe.top_k
        return plan_request(policy, visual_tokens=visual_tokens, moe_layers=moe[0], top_k=moe[1], method=method)

    @torch.no_grad()
    def image_features(self, vision_inputs: dict[str, Array]) -> Array:
        """Features [V, H] float32 of every visual position."""
        inputs = {name: torch.from_numpy(value) for name, value in vision_inputs.items()}
        features: Array = self.model.graphs.vision(inputs)[graph_io.IMAGE_FEATURES].numpy()
        return features

    @torch.no_grad()
    def embed(self, input_ids: Sequence[int] | Array) -> Array:
        """Token embeddings [T, H] float32."""
        ids = torch.from_numpy(np.asarray(input_ids, np.int32))
        embeds: Array = self.model.graphs.embedding({graph_io.INPUT_IDS: ids})[graph_io.INPUTS_EMBEDS].numpy()
        return embeds

    @torch.no_grad()
    def prefill(
        self, decoder: Decoder, embeds: Sequence[Array], visual_index: Sequence[Array], *, method: str | None = None
    ) -> Outputs:
        """All outputs of the language model for prompts packed into one call.

        Args:
            embeds: [T, H] of each prompt. visual_index: int32 [V] of each.
            method: None = the policy's default; "none" prunes nothing.
        """
        policy = decoder.policy
        chunks = [
            Chunk(row, x, index, self.plan(policy, len(index), method=method))
            for row, (x, index) in enumerate(zip(embeds, visual_index, strict=True))
        ]
        feeds = call_feeds(policy, chunks, [0] * len(chunks), alpha=policy.alpha, seed=0)
        return self._run(decoder, feeds, empty_cache(decoder.module, self.config))

    @torch.no_grad()
    def continue_with(
        self, decoder: Decoder, before: Outputs, lengths: Sequence[int], ids: Sequence[Sequence[int]]
    ) -> Array:
        """Logits [sum of tokens, vocab] float32 after every one of the tokens that each sequence goes on with.

        Args:
            before: outputs of `prefill` for the same sequences. lengths: original positions of each so far.
        """
        policy = decoder.policy
        text = self.plan(policy, 0)
        rows = [i for i, tokens in enumerate(ids) if len(tokens)]
        chunks = [Chunk(i, self.embed(ids[i]), NO_VISUAL_TOKENS, text) for i in rows]
        feeds = call_feeds(policy, chunks, [lengths[i] for i in rows], alpha=policy.alpha, seed=0)
        # The head runs on the last row of each sequence. With every row as the last one of a sequence without visual
        # tokens it runs on all; which keys a row sees is told by sequence_ids, which stay.
        T = len(feeds[graph_io.INPUTS_EMBEDS])
        for name in feeds:
            if name.split(".")[0].endswith("_offsets"):
                feeds[name] = np.zeros(T + 1, np.int32)
        feeds[graph_io.SEQUENCE_OFFSETS] = np.arange(T + 1, dtype=np.int32)
        cache = {name: before[graph_io.present_name(name)] for name in empty_cache(decoder.module, self.config)}
        logits: Array = self._run(decoder, feeds, cache)[graph_io.LOGITS].numpy()
        return logits

    @staticmethod
    def _run(decoder: Decoder, feeds: dict[str, Array], cache: Outputs) -> Outputs:
        outputs: Outputs = decoder.module({name: torch.from_numpy(value) for name, value in feeds.items()} | cache)
        return outputs


def hash_values(model: TorchModel) -> str:
    """SHA-256 (hexadecimal) of all parameters, which a checkpoint's identity leaves out."""
    digest = hashlib.sha256()
    for graph, module in model.model.graphs.items():
        for name, value in module.state_dict().items():
            digest.update(f"{graph}.{name}".encode() + value.numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """So many threads of torch for a while: their number decides the order of sums, and so the last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
