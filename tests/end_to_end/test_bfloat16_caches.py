# SPDX-License-Identifier: Apache-2.0
"""Bundles whose caches store bfloat16: recorded outputs, the unmodified model, batches, conversations, refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from fastmmoe.exporter.cli import main as export_main
from fastmmoe.runtime.backends.batch import Batch
from fastmmoe.runtime.bundle.inspection import describe_bundle, inspect_bundle
from fastmmoe.runtime.bundle.manifest import read_manifest
from fastmmoe.runtime.conversation import Conversation
from fastmmoe.runtime.errors import BundleMismatch
from fastmmoe.runtime.method.call import NO_VISUAL_TOKENS, Chunk
from fastmmoe.runtime.method.schedule import plan_request
from fastmmoe.runtime.types import Array
from fastmmoe.runtime.vlm import VLM
from tests.end_to_end.conftest import PRUNE_LAYERS, SMALL, SMALL_FLAGS
from tests.support.messages import question
from tests.support.rounding import check_over_bfloat16_caches

Tensors = dict[str, Array]
BF16 = ("--kv-cache-dtype", "bf16")
CASES = ("single", "text", "batch2")
# Each export takes half a minute: one model always, the others with the slow tests.
QUICK = "dsvl2-mla"
EVERY_MODEL = [name if name == QUICK else pytest.param(name, marks=pytest.mark.slow) for name in PRUNE_LAYERS]
TWO_MODELS = [QUICK, pytest.param("internvl-gptoss", marks=pytest.mark.slow)]


@pytest.fixture(scope="session")
def bf16_bundle(bundle: Callable[..., Path]) -> Callable[[str], Path]:
    """Function checkpoint -> its bundle at the golden prune layers, with caches of bfloat16."""
    return lambda name: bundle(name, "--prune-layers", PRUNE_LAYERS[name], *BF16)


@pytest.mark.parametrize("portable", [False, True], ids=["native", "portable"])
@pytest.mark.parametrize("name", EVERY_MODEL)
def test_the_recorded_outputs(
    name: str,
    portable: bool,
    bf16_bundle: Callable[[str], Path],
    case_tensors: Callable[[str, str], Tensors],
    golden_array: Callable[[str, str], Array],
    golden_last_logits: Callable[[str], Array],
) -> None:
    """Steps are compared while the tokens are the recorded ones: behind another one is another text."""
    model = VLM(bf16_bundle(name), portable=portable)
    for case in CASES:
        file = f"{name}/outputs_{case}.npz"
        steps = golden_array(file, "decode_logits") if case == "single" else np.zeros((0, 1))
        found = model.run_tensors(case_tensors(name, case), retention=1.0, max_new_tokens=len(steps) + 1)
        layers = found["cache_lengths"].shape[-1]
        check_over_bfloat16_caches("logits", found["logits"], golden_last_logits(file), layers)
        if case == "single":
            same = found["decode_tokens"] == golden_array(file, "decode_tokens")
            count = int(np.cumprod(same).sum())
            assert count >= 1
            check_over_bfloat16_caches("logits", found["decode_logits"][:count], steps[:count], layers)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dsvl2-mla", "internvl-gptoss"])
def test_full_retention_is_bit_identical_to_no_method(
    name: str,
    bundle: Callable[..., Path],
    bf16_bundle: Callable[[str], Path],
    case_tensors: Callable[[str, str], Tensors],
) -> None:
    tensors = case_tensors(name, "single")
    plain = VLM(bundle(name, "--method", "none", *BF16)).run_tensors(tensors, max_new_tokens=4)
    found = VLM(bf16_bundle(name)).run_tensors(tensors, retention=1.0, max_new_tokens=4)
    for output in ("logits", "decode_logits", "decode_tokens", "cache_lengths"):
        np.testing.assert_array_equal(found[output], plain[output], err_msg=output)


@pytest.mark.parametrize("name", TWO_MODELS)
def test_a_batch_answers_as_its_rows_alone(name: str, bf16_bundle: Callable[[str], Path]) -> None:
    model = VLM(bf16_bundle(name))
    texts = ("What is this?", "Say a word, please.")
    together = model.generate_batch([question(text) for text in texts], max_new_tokens=4)
    for answer, text in zip(together, texts, strict=True):
        assert answer.token_ids == model.generate(question(text), max_new_tokens=4).token_ids


@pytest.mark.parametrize("name", TWO_MODELS)
def test_rows_move_to_greater_caches_as_they_are(name: str, bf16_bundle: Callable[[str], Path]) -> None:
    """Capacity is not seen: a conversation that outgrows its caches goes on as one that had room from the start."""
    backend = VLM(bf16_bundle(name)).backend
    info, policy = backend.info, backend.policy
    schedule = plan_request(policy, visual_tokens=0, moe_layers=info.moe_layers, top_k=info.top_k)

    def run(room: int) -> tuple[int, Array]:
        batch, logits = Batch(backend), []
        for ids, new_tokens in ((np.arange(40), [room]), (np.arange(40, 400), ()), (np.arange(1), ())):
            chunk = Chunk(0, backend.embed(ids % info.vocab_size), NO_VISUAL_TOKENS, schedule)
            logits.append(batch.extend([chunk], alpha=policy.alpha, new_tokens=new_tokens))
        return batch.capacities[0], np.stack(logits)

    (grown, moved), (roomy, stayed) = run(4), run(2000)
    assert (grown, roomy) == (512, 2048)
    np.testing.assert_array_equal(moved, stayed)


def test_a_conversation(bf16_bundle: Callable[[str], Path]) -> None:
    """A second question goes on from the rows of the first and its answer."""
    conversation = Conversation(VLM(bf16_bundle("dsvl2-mla")), max_new_tokens=4)
    first, second = conversation.ask("What is this?"), conversation.ask("And this?")
    assert second.stats.past_tokens > first.stats.text_tokens and len(second.token_ids) >= 1
    assert second.stats.cache_lengths[0] == second.stats.past_tokens + second.stats.text_tokens


def test_what_a_bundle_says_and_its_graphs_have(bundle: Callable[..., Path]) -> None:
    out = bundle(SMALL, *SMALL_FLAGS, *BF16)
    manifest = read_manifest(out)
    assert (manifest.activation_dtype, manifest.cache_dtype) == ("float32", "bfloat16")
    lines = describe_bundle(out, inspect_bundle(out))
    assert "target        cpu, dtype fp32, activations float32, caches bfloat16" in lines
    for file in ("language_model.onnx", "language_model.portable.onnx"):
        graph = onnx.load(out / file, load_external_data=False).graph
        types = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.output)}
        caches = {kind for name, kind in types.items() if name.startswith(("past_key_values.", "present."))}
        assert caches == {onnx.TensorProto.BFLOAT16}
        assert types["inputs_embeds"] == types["logits"] == onnx.TensorProto.FLOAT


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--kv-cache-dtype", "fp16"), "--kv-cache-dtype fp16: target cpu with dtype fp32 takes fp32, bf16"),
        (
            ("--target", "jetson-orin", "--kv-cache-dtype", "bf16"),
            "--kv-cache-dtype bf16: target jetson-agx-orin with dtype fp16 takes fp16 alone, the type of its "
            "activations",
        ),
    ],
)
def test_what_no_kernel_reads_is_refused(
    flags: tuple[str, ...], words: str, small_dir: Path, tmp_path: Path, refusal: Callable[..., str]
) -> None:
    assert refusal(export_main, [str(small_dir), str(tmp_path / "out"), *flags]).endswith(words)


def test_a_manifest_that_says_other_caches_than_the_graph_has(own_bundle: Path) -> None:
    """Edited, and taken unverified: the graph's own types are looked at."""
    file = own_bundle / "manifest.json"
    file.write_text(file.read_text().replace('"cache_dtype": "float32"', '"cache_dtype": "bfloat16"'))
    with pytest.raises(BundleMismatch, match=r"past_key_values\.0\.key is float32 .*, expected bfloat16"):
        VLM(own_bundle, verify=False)
