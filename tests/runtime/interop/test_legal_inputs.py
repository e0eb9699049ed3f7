# SPDX-License-Identifier: Apache-2.0
"""Random inputs of graphs: names, shapes and types of the signatures, and numbers that belong together."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from fastmmoe.runtime.bundle import graph_io, signatures
from fastmmoe.runtime.bundle.manifest import GRAPHS, Manifest, load_manifest, write_manifest
from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.interop.legal_inputs import RETENTIONS, TEXT_AFTER, TEXT_BEFORE, legal_inputs, request_inputs
from fastmmoe.runtime.types import Array
from tests.support.manifests import toy_manifest, write_toy_bundle


def check_signature(manifest: Manifest, graph: str, inputs: dict[str, Array]) -> None:
    """Names, types and sizes are those of the graph; a letter is one number in all of a call's shapes."""
    tensors = signatures.signatures(manifest)[graph].inputs
    sizes: dict[str, int] = {}
    assert set(inputs) == {tensor.name for tensor in tensors}
    for name, shape, dtype in tensors:
        assert inputs[name].dtype == dtype
        for size, found in zip(shape, inputs[name].shape, strict=True):
            assert found == (sizes.setdefault(size, found) if isinstance(size, str) else size), name


@pytest.mark.parametrize("family", ["deepseek_vl2", "internvl3_5"])
@pytest.mark.parametrize("graph", GRAPHS)
def test_inputs_fit_the_graph(family: str, graph: str, tmp_path: Path) -> None:
    bundle = write_toy_bundle(tmp_path / "toy")
    manifest = toy_manifest(family)
    write_manifest(bundle, manifest)
    calls = list(legal_inputs(bundle, graph))
    assert len(calls) == (len(RETENTIONS) + 1 if graph == "language_model" else 1)
    for inputs in calls:
        check_signature(manifest, graph, inputs)


def test_a_step_follows_the_last_prompt(toy_bundle: Path) -> None:
    *prompts, step = legal_inputs(toy_bundle, "language_model")
    visual = len(prompts[0][graph_io.VISUAL_INDEX])
    assert visual == 13
    kept = [len(prompt[graph_io.keep_slots(1)]) for prompt in prompts]
    assert kept == [13, 6, 3]
    assert step[graph_io.POSITION_IDS].tolist() == [visual + TEXT_BEFORE + TEXT_AFTER]
    # Behind the last site there are as many rows as were left, and no room for more than the step's.
    (length,) = step[graph_io.past_lengths(2)]
    assert length == kept[-1] + TEXT_BEFORE + TEXT_AFTER
    assert step["past_key_values.3.key"].shape[2] == length + 1


def test_a_request_has_no_picture_token_among_its_words() -> None:
    config = toy_manifest("internvl3_5").processor
    for seed in range(20):
        inputs = request_inputs(config, seed)
        assert (inputs.input_ids == config.image_token_id).nonzero()[0].tolist() == inputs.visual_index.tolist()
        assert inputs.input_ids.max() < config.vocab_size
    inputs, again, other = (request_inputs(config, seed) for seed in (1, 1, 2))
    pixels = [one.vision_inputs["pixel_values"] for one in (inputs, again, other)]
    assert np.array_equal(pixels[0], pixels[1]) and not np.array_equal(pixels[0], pixels[2])


def test_what_numpy_and_the_cpu_cannot_do_is_refused(toy_bundle: Path) -> None:
    manifest = load_manifest(toy_bundle)
    write_manifest(toy_bundle, msgspec.structs.replace(manifest, cache_dtype="bfloat16"))
    with pytest.raises(InvalidRequest, match="its caches are bfloat16"):
        next(legal_inputs(toy_bundle, "vision"))
    write_manifest(toy_bundle, manifest)
    with pytest.raises(InvalidRequest, match=r"^graph 'decoder': expected one of vision, embedding, language_model$"):
        next(legal_inputs(toy_bundle, "decoder"))
