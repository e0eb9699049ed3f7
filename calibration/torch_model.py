# SPDX-License-Identifier: Apache-2.0
"""A checkpoint in torch with its values loaded once; decoders with any policy share them."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fastmmoe.exporter.check.weights import check_weights
from fastmmoe.exporter.checkpoint.reader import Checkpoint
from fastmmoe.exporter.manifest import language_model_info
from fastmmoe.exporter.model import Model, Precision
from fastmmoe.exporter.processor import read_processor_config
from fastmmoe.exporter.pruning.settings import Layers, PolicyOptions, resolve_policy
from fastmmoe.exporter.torch_backend import TorchBackend
from fastmmoe.runtime.backends.batch import Batch
from fastmmoe.runtime.bundle.manifest import TOKENIZER, LanguageModelInfo
from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.method.call import NO_VISUAL_TOKENS, Chunk
from fastmmoe.runtime.method.policy import Policy
from fastmmoe.runtime.method.schedule import Schedule, plan_request
from fastmmoe.runtime.request.processor import Processor
from fastmmoe.runtime.types import Array


@dataclass(frozen=True)
class Prefilled:
    """Sequences after their prompts.

    Attributes:
        logits: [B, vocab] float32, of each prompt's last row.
        batch: the sequences, which may go on.
    """

    logits: Array
    batch: Batch


class TorchModel:
    """A checkpoint's modules, float32, with their values.

    Args:
        directory: the checkpoint's.
    Raises:
        UnsupportedModel: see `Checkpoint`, `Model` and `check_weights`.
        InvalidRequest: the checkpoint has no tokenizer.

    Attributes:
        layers: what pruning needs to know of the decoder.
        info: what its FLOPs depend on.
        processor: from pictures and questions to the inputs of the graphs.
    """

    def __init__(self, directory: Path) -> None:
        checkpoint = Checkpoint(directory)
        self.model = Model(checkpoint, PolicyOptions(), Precision(torch.float32, torch.float32))
        check_weights(self.model, say=lambda _: None)
        self.config, self.family, self.identity = self.model.config, self.model.family_name, checkpoint.identity
        for graph, module in self.model.graphs.items():
            values = {name: self.model.load(f"{graph}.{name}") for name, _ in module.named_parameters()}
            module.load_state_dict(values, assign=True)
        self._values = self.model.graphs.language_model.state_dict()
        c = self.config
        self.layers = Layers(c.num_hidden_layers, c.moe_layers, c.full_attention_layers, c.moe.top_k)
        tokenizer = checkpoint.path / TOKENIZER
        if not tokenizer.is_file():
            raise InvalidRequest(f"{checkpoint.path}: no {TOKENIZER}: calibration asks in words and needs one")
        config = read_processor_config(checkpoint.path, self.model.config_reader, vocab_size=c.vocab_size)
        self.processor = Processor(config, tokenizer)
        self.info: LanguageModelInfo = language_model_info(c)
        self._backend = TorchBackend(self.model.graphs, self.model.policy, self.info, c.max_position_embeddings)

    def resolve(self, options: PolicyOptions) -> Policy:
        """The policy of an export with these options."""
        return resolve_policy(options, family=self.family, layers=self.layers)

    def decoder(self, policy: Policy) -> TorchBackend:
        """The model with this policy; its parameters are those of every other one."""
        with torch.device("meta"):
            module = self.model.family.build_graphs(self.config, policy).language_model
        module.load_state_dict(self._values, assign=True)
        graphs = dataclasses.replace(self.model.graphs, language_model=module.eval())
        return TorchBackend(graphs, policy, self.info, self.config.max_position_embeddings)

    def plan(self, policy: Policy, visual_tokens: int, *, method: str | None = None) -> Schedule:
        """The schedule of a prompt at the policy's retention."""
        moe = self.config.moe_layers, self.config.moe.top_k
        return plan_request(policy, visual_tokens=visual_tokens, moe_layers=moe[0], top_k=moe[1], method=method)

    def image_features(self, vision_inputs: dict[str, Array]) -> Array:
        """Features [V, H] float32 of every visual position."""
        return self._backend.image_features(vision_inputs)

    def embed(self, input_ids: Sequence[int] | Array) -> Array:
        """Token embeddings [T, H] float32."""
        return self._backend.embed(np.asarray(input_ids))

    def prefill(
        self,
        decoder: TorchBackend,
        embeds: Sequence[Array],
        visual_index: Sequence[Array],
        *,
        method: str | None = None,
    ) -> Prefilled:
        """Run prompts packed into one call.

        Args:
            embeds: [T, H] of each prompt.
            visual_index: int32 [V] of each.
            method: None = the policy's default; "none" prunes nothing.
        """
        batch = Batch(decoder, len(embeds))
        chunks = [
            Chunk(i, x, index, self.plan(decoder.policy, len(index), method=method))
            for i, (x, index) in enumerate(zip(embeds, visual_index, strict=True))
        ]
        return Prefilled(batch.extend(chunks, alpha=decoder.policy.alpha), batch)

    def continue_with(self, decoder: TorchBackend, before: Prefilled, ids: Sequence[Sequence[int]]) -> Array:
        """Logits [sum of tokens, vocab] float32 after every one of the tokens that each sequence goes on with.

        Args:
            before: what `prefill` returned for the same sequences.
        """
        policy, batch = decoder.policy, before.batch
        text = self.plan(policy, 0)
        going_on = [i for i, tokens in enumerate(ids) if len(tokens)]
        chunks = [Chunk(i, self.embed(ids[i]), NO_VISUAL_TOKENS, text) for i in going_on]
        feeds, _ = batch.prepare(chunks, alpha=policy.alpha)
        assert batch.caches is not None
        return decoder.logits_of_rows(feeds, batch.caches)


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
