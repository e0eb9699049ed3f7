# SPDX-License-Identifier: Apache-2.0
"""Export a Qwen3-MoE language model for ONNX Runtime GenAI: onnxruntime-genai, torch, transformers in an environment.

    python scripts/benchmark_tools/genai_files.py TEXT OUT int4|int8|fp32

The builder of onnxruntime-genai 0.18.0 ends with `NotImplementedError: The TEXT model is not currently supported.` for
Qwen3MoeForCausalLM. What it has for Qwen3 and for the experts of Qwen3.5 is put together here; QMoE multiplies
activations of 8 bits, as its dense layers do by default.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

SUPPORTED, WANTED = "Qwen3ForCausalLM", "Qwen3MoeForCausalLM"
EIGHT_BITS = 4
"""accuracy_level of MatMulNBits and QMoE: activations of 8 bits."""


def qwen3_moe() -> type:
    """The builder's model of Qwen3 with experts after each attention."""
    from builders.qwen import Qwen3Model, Qwen35MoETextModel  # type: ignore[import-not-found]

    class Qwen3MoE(Qwen3Model):  # type: ignore[misc]
        """Qwen3's attention, Qwen3.5's routed experts without the shared one."""

        get_moe_module = Qwen35MoETextModel.get_moe_module
        make_moe_preprocessing = Qwen35MoETextModel.make_moe_preprocessing
        make_moe_router = Qwen35MoETextModel.make_moe_router

        def __init__(self, config: Any, *arguments: Any) -> None:
            super().__init__(config, *arguments)
            self.moe_intermediate_size = config.moe_intermediate_size
            self.moe_attrs |= {
                "activation_type": "swiglu",
                "swiglu_fusion": 1,
                "normalize_routing_weights": config.norm_topk_prob,
            }

        def make_moe_subgraph(self, layer_id: int, moe: object, root_input: str) -> None:
            base, kind = f"/model/layers.{layer_id}/moe", self.moe_attrs["op_type"]
            names, is_quantised = self.make_moe_expert_names(layer_id), kind == "QMoE"
            self.make_moe_op(
                f"{base}/{kind}",
                root_input=root_input,
                router_probs=f"{base}/router/Reshape/output_0",
                weight1=names["gate_up_weight"],
                scales1=names["gate_up_scales"] if is_quantised else "",
                bias1=names["gate_up_bias"],
                weight2=names["down_weight"],
                scales2=names["down_scales"] if is_quantised else "",
                bias2=names["down_bias"],
            )
            self.layernorm_attrs["skip_input"] = f"{base}/{kind}/output_0"

        def make_node(self, op_type: str, *arguments: Any, **attributes: Any) -> Any:
            if op_type == "QMoE":
                attributes["accuracy_level"] = EIGHT_BITS
            return super().make_node(op_type, *arguments, **attributes)

    return Qwen3MoE


def main() -> None:
    """Parse and export."""
    text, out, precision = sys.argv[1:]
    package = importlib.util.find_spec("onnxruntime_genai")
    assert package is not None and package.origin is not None
    # Its modules import each other from there.
    sys.path.insert(0, str(Path(package.origin).parent / "models"))
    import builder  # type: ignore[import-not-found]

    builder.Qwen3Model = qwen3_moe()
    places = (text, text, out, precision, "cpu", str(Path(out) / "cache"))
    options = builder.parse_extra_options(*places, [f"int4_accuracy_level={EIGHT_BITS}"])
    config = options["hf_details"]["hf_config"]
    if config.architectures != [WANTED]:
        sys.exit(f"genai_files.py: {text} is of {config.architectures}, expected {WANTED}")
    config.architectures = [SUPPORTED]
    builder.create_model(*places, **options)


if __name__ == "__main__":
    main()
