# SPDX-License-Identifier: Apache-2.0
"""A checkpoint as one object: its family, graphs and weights."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from fastmmoe.exporter.checkpoint.config_reader import ConfigReader
from fastmmoe.exporter.checkpoint.reader import Checkpoint, account, build
from fastmmoe.exporter.models.configs import ModelConfig
from fastmmoe.exporter.models.family import family_of
from fastmmoe.exporter.models.layers import SparseMoe, use_rotary_operator, use_vision_operator
from fastmmoe.exporter.models.linears import use_packed_linears
from fastmmoe.exporter.models.weight_rules import has_fused_experts
from fastmmoe.exporter.ops.linear.packing import LinearPacking, LinearPackings
from fastmmoe.exporter.ops.quantise import Packing
from fastmmoe.exporter.ops.sparse_moe.storage import Storage
from fastmmoe.exporter.ops.vision_attention.contract import BFLOAT16
from fastmmoe.exporter.pruning.settings import Layers, PolicyOptions, resolve_policy
from fastmmoe.runtime.errors import UnsupportedModel
from fastmmoe.runtime.request.config import FamilyName

# Expert tensors keep 16-bit storage on targets that compute in float32; these names end their parameters.
EXPERT_WEIGHTS = (".mlp.experts.gate_up", ".mlp.experts.down")
# Parameters that are float32 in every model: the router works in float32, positions need its range.
FLOAT32_PARTS = (".mlp.experts.router.", ".mlp.experts.correction_bias", "language_model.inv_freq")


@dataclass(frozen=True)
class Precision:
    """Element types of a model's parameters and caches.

    Attributes:
        experts: type of the routed experts' weights.
        activations: type of everything else but FLOAT32_PARTS.
        rounded_experts, rounded_activations: values pass through these on the way, for a float32 twin of a 16-bit
            model; None = they do not.
        packing: the experts' weights become integers when the graph is written; None = they do not.
        kv_caches: type of the key-value caches; None = that of the activations.
        linears: the linear layers that become FmmLinear, whose weights are packed when the graph is written.
        is_tiled: the experts' weights are written in tile order.
    """

    experts: torch.dtype
    activations: torch.dtype
    rounded_experts: torch.dtype | None = None
    rounded_activations: torch.dtype | None = None
    packing: Packing | None = None
    kv_caches: torch.dtype | None = None
    linears: LinearPackings = field(default_factory=LinearPackings)
    is_tiled: bool = False

    @property
    def storage(self) -> Storage | None:
        """How the experts are written; None = as they are."""
        is_plain = self.is_twin or (self.packing is None and not self.is_tiled)
        return None if is_plain else Storage(self.packing, self.is_tiled)

    @property
    def activation_dtype(self) -> str:
        """Name of the activations' type, torch's and NumPy's."""
        return _name(self.activations)

    @property
    def cache_dtype(self) -> str:
        """Name of the caches' type."""
        return _name(self.activations if self.kv_caches is None else self.kv_caches)

    @property
    def is_twin(self) -> bool:
        """Whether this is the float32 twin of another precision."""
        return self.rounded_experts is not None

    def float32_twin(self) -> Precision:
        """Float32 everywhere, with exactly this precision's values."""
        return Precision(
            torch.float32, torch.float32, self.experts, self.activations, self.packing, linears=self.linears
        )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def part_of_experts(name: str) -> tuple[str, str]:
    """The parameter that scales or zeros of experts belong to, and their suffix; ("...", "") of others."""
    for part in ("_scale", "_zero"):
        if name.removesuffix(part).endswith(EXPERT_WEIGHTS) and name.endswith(part):
            return name.removesuffix(part), part
    return name, ""


class Model:
    """A checkpoint's configuration, resolved FastMMoE policy, graphs (without values) and weights (one at a time).

    Attributes:
        family: the module that the model's configuration and graphs come from.
        graphs: modules on the meta device with every parameter in its exported dtype.
        rules: how each parameter is made from the checkpoint, by graph-qualified name.
        config_reader: reads config.json, and knows which keys have been read.
    Raises:
        UnsupportedModel: unknown family, unimplemented configuration, tensors that do not fit.
        InvalidRequest: policy options outside what the model allows.
    """

    _packed_linears: frozenset[str] | set[str] = frozenset()

    def __init__(self, checkpoint: Checkpoint, options: PolicyOptions, precision: Precision) -> None:
        self.family = family = family_of(checkpoint.config.get("model_type"))
        reader = ConfigReader(checkpoint.config)
        reader.require("model_type", str)
        self.checkpoint = checkpoint
        self.config = family.read_config(reader)
        self.config_reader = reader
        self.policy = resolve_policy(
            options,
            family=self.family_name,
            layers=Layers(
                self.config.num_hidden_layers,
                self.config.moe_layers,
                self.config.full_attention_layers,
                self.config.moe.top_k,
            ),
        )
        checkpoint.rename_prefixes(family.RENAMED_PREFIXES)
        is_fused = has_fused_experts(checkpoint.tensors)
        _check_size(checkpoint, self.config, is_fused)
        self.rules = family.weight_map(self.config, fused_experts=is_fused)
        self._computed = family.computed_weights(self.config)
        account(checkpoint, self.rules, family.DROPPED_TENSORS)
        self.precision = precision
        with torch.device("meta"):
            self.graphs = family.build_graphs(self.config, self.policy)
        self._packed_linears = use_packed_linears(self.graphs, precision.linears)
        if precision.linears.dense is not None and precision.linears.dense.is_tiled:
            use_rotary_operator(self.graphs.language_model)
        if precision.linears.vision is not None:
            use_vision_operator(self.graphs.vision, BFLOAT16)
        for graph, module in self.graphs.items():
            for name, parameter in module.named_parameters():
                parameter.requires_grad_(False)
                parameter.data = parameter.data.to(self.parameter_dtype(f"{graph}.{name}"))
        self._check_complete()

    @property
    def family_name(self) -> FamilyName:
        """The family, as manifests have it."""
        return self.family.PREPROCESSING.NAME

    def parameter_dtype(self, name: str) -> torch.dtype:
        """Exported dtype of a parameter, by graph-qualified name."""
        return self._by_part(name, self.precision.experts, self.precision.activations)

    def load(self, name: str) -> torch.Tensor:
        """The values of a parameter in its exported dtype, read from the checkpoint now and kept nowhere.

        Weights that are to be packed come as the checkpoint has them, in a float32 twin as what the integers stand for.
        """
        value = self._computed[name] if self.is_computed(name) else build(self.checkpoint, self.rules[name])
        rounding, linear = self.rounding(name), self.linear_packing(name)
        if rounding is not None:
            return round_experts(value, rounding)
        if linear is not None and self.precision.is_twin:
            return torch.from_numpy(linear.round(value.float().numpy()))
        for dtype in self.conversions(name):
            value = value.to(dtype)
        return value.contiguous()

    def linear_packing(self, name: str) -> LinearPacking | None:
        """How a parameter is packed that is the weight of a linear layer; None = it is not."""
        return self.precision.linears.of(name) if name in self._packed_linears else None

    def store_experts(self) -> None:
        """Let the modules take experts as they are written; their values are the caller's."""
        storage = self.precision.storage
        for module in self.graphs.language_model.modules():
            if storage is not None and isinstance(module, SparseMoe):
                module.store(storage)

    def is_computed(self, name: str) -> bool:
        """Whether a parameter follows from the configuration; the checkpoint has no rule for it."""
        return name in self._computed

    def rounding(self, name: str) -> Packing | None:
        """The packing that a parameter's values are rounded by, in a float32 twin; None = they are not."""
        return self.precision.packing if self.precision.is_twin and name.endswith(EXPERT_WEIGHTS) else None

    def conversions(self, name: str) -> tuple[torch.dtype, ...]:
        """The types that a parameter's values pass through on the way from the checkpoint, the exported one last."""
        p = self.precision
        if name in self._packed_linears or (p.packing is not None and name.endswith(EXPERT_WEIGHTS)):
            return ()
        if p.rounded_experts is None or p.rounded_activations is None:
            return (self.parameter_dtype(name),)
        return self._by_part(name, p.rounded_experts, p.rounded_activations), self.parameter_dtype(name)

    @staticmethod
    def _by_part(name: str, experts: torch.dtype, others: torch.dtype) -> torch.dtype:
        if any(part in name for part in FLOAT32_PARTS):
            return torch.float32
        return experts if name.endswith(EXPERT_WEIGHTS) else others

    def _check_complete(self) -> None:
        # The weight maps and the modules are ours: a difference is a mistake in this package, not in a checkpoint.
        ours = {
            f"{graph}.{name}": tuple(p.shape) for graph, m in self.graphs.items() for name, p in m.named_parameters()
        }
        mapped = {name: rule.parameter_shape for name, rule in self.rules.items()}
        mapped |= {name: tuple(value.shape) for name, value in self._computed.items()}
        assert ours == mapped, f"weight map and modules differ: {sorted(ours.items() ^ mapped.items())[:5]}"


def _check_size(checkpoint: Checkpoint, config: ModelConfig, is_fused: bool) -> None:
    """Raise UnsupportedModel where the weights are far fewer than the configuration needs.

    `account` names every missing tensor, which takes minutes and gigabytes where a damaged file means millions.
    """
    layers, tower, experts = config.num_hidden_layers, config.vision.layers, config.moe.num_experts
    of_experts = 2 if is_fused or config.moe.expert_bias else 3 * experts
    least = 6 * layers + 8 * tower + of_experts * len(config.moe_layers)
    if least > 2 * len(checkpoint.tensors) + 10_000:
        raise UnsupportedModel(
            f"{checkpoint.path}: config.json means {layers:,} layers, {experts:,} experts in each of "
            f"{len(config.moe_layers):,} and {tower:,} layers of the vision tower, which are at least {least:,} "
            f"tensors; the weights hold {len(checkpoint.tensors):,}: check that both belong to the same model"
        )


def round_experts(weights: torch.Tensor, packing: Packing) -> torch.Tensor:
    """What the packed weights [E, rows, columns] stand for, float32."""
    return torch.from_numpy(np.stack([packing.round(expert.float().numpy()) for expert in weights]))
