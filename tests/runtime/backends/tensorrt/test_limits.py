# SPDX-License-Identifier: Apache-2.0
"""What engines refuse before anything runs, and the shapes of what they compute."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from fastmmoe.runtime.backends.tensorrt.limits import CallLimits, output_shapes
from fastmmoe.runtime.bundle import signatures
from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.types import Array
from tests.support.manifests import toy_manifest
from tests.support.toy_engines import LIMITS, engine_manifest

DIRECTORY = Path("bundle")


@pytest.fixture
def limits() -> CallLimits:
    """24 tokens, 12 of them visual, 64 cached, 2 tiles, 2 sequences; two sites."""
    return CallLimits(engine_manifest(), LIMITS, DIRECTORY)


def refusal(found: int, what: str, option: str, most: int) -> str:
    """A whole message."""
    more = f"build them for more: fastmmoe build bundle --max-{option} {found}"
    return f"{found} {what}: the engines take {most}; {more}"


def pictures(tiles: int, visual: int | None) -> dict[str, Array]:
    found = {"pixel_values": np.zeros((tiles, 3, 16, 16))}
    return found if visual is None else found | {"layout_index": np.zeros(visual)}


def call(limits: CallLimits, **lengths: int) -> dict[str, Array]:
    """Inputs of a call in the greatest shapes, but for these lengths of the first axis."""
    return {
        name: np.zeros((lengths.get(name.replace(".", "_"), shape[0]), *shape[1:]), dtype)
        for name, (shape, dtype) in limits.prefill_inputs().items()
    }


def test_inputs_of_a_call(limits: CallLimits) -> None:
    """All but embeddings, caches and experts; ids first. Slots and offsets of each site too."""
    names = [
        "position_ids",
        "sequence_ids",
        "sequence_offsets",
        "visual_index",
        "visual_offsets",
        "visual_top_k",
        "alpha",
        *(f"{what}.{s}" for s in range(2) for what in ("keep_slots", "keep_offsets", "merge_slots", "merge_offsets")),
        *(f"past_lengths.{g}" for g in range(3)),
    ]
    assert [tensor.name for tensor in limits.inputs] == names
    assert list(limits.prefill_inputs()) == list(limits.decode_inputs()) == ["input_ids", *names]
    fixed = {"visual_top_k", "alpha"}
    assert {*names} & limits.changing == {*names} - fixed
    assert limits.changing - {*names} == {"inputs_embeds", *(n for n in limits.changing if "past_key" in n)}
    assert len([name for name in limits.changing if "past_key" in name]) == 8


def test_greatest_shapes(limits: CallLimits) -> None:
    prefill, decode = limits.prefill_inputs(), limits.decode_inputs()
    assert prefill["input_ids"] == ((24,), "int32") and decode["input_ids"] == ((2,), "int32")
    assert prefill["visual_index"] == ((12,), "int32") and decode["visual_index"] == ((0,), "int32")
    assert prefill["sequence_offsets"] == decode["sequence_offsets"] == ((3,), "int32")
    assert prefill["visual_top_k"] == decode["visual_top_k"] == ((3,), "int32")
    assert prefill["alpha"] == ((2,), "float32") and prefill["past_lengths.2"] == ((2,), "int32")
    assert prefill["keep_slots.1"] == ((12,), "int8") and decode["keep_slots.1"] == ((0,), "int8")


def test_pictures(limits: CallLimits) -> None:
    assert limits.check_pictures(pictures(2, 12)) == 12
    assert limits.check_pictures(pictures(1, 0)) == 0
    # Without a layout each tile has its tokens.
    assert limits.check_pictures(pictures(2, None)) == 8
    with pytest.raises(InvalidRequest) as error:
        limits.check_pictures(pictures(3, 12))
    assert str(error.value) == refusal(3, "tiles", "tiles", 2)
    with pytest.raises(InvalidRequest) as error:
        limits.check_pictures(pictures(2, 13))
    assert str(error.value) == refusal(13, "visual tokens", "visual", 12)


def test_pictures_without_a_layout_are_counted() -> None:
    manifest = toy_manifest("internvl3_5")
    limits = CallLimits(manifest, msgspec.structs.replace(LIMITS, max_tiles=4), DIRECTORY)
    assert limits.check_pictures(pictures(3, None)) == 12
    with pytest.raises(InvalidRequest) as error:
        limits.check_pictures(pictures(4, None))
    assert str(error.value) == refusal(16, "visual tokens", "visual", 12)


def test_caches(limits: CallLimits) -> None:
    """Capacities are rounded up, so are those of the engines: 256 for 64."""
    limits.check_caches(2, [256, 256, 256])
    with pytest.raises(InvalidRequest) as error:
        limits.check_caches(3, [256, 256, 256])
    assert str(error.value) == refusal(3, "sequences at once", "batch", 2)
    with pytest.raises(InvalidRequest) as error:
        limits.check_caches(2, [256, 512, 256])
    assert str(error.value) == refusal(512, "tokens of one sequence, answer included", "cache", 64)


def test_calls(limits: CallLimits) -> None:
    limits.check_call(call(limits))
    limits.check_call(call(limits, visual_index=0, keep_slots_0=0))
    with pytest.raises(InvalidRequest) as error:
        limits.check_call(call(limits, input_ids=25, position_ids=25))
    assert str(error.value) == refusal(25, "tokens of one call", "tokens", 24)
    with pytest.raises(InvalidRequest) as error:
        limits.check_call(call(limits, visual_index=13))
    assert str(error.value) == refusal(13, "visual tokens", "visual", 12)


@pytest.mark.parametrize(
    ("name", "length", "most"), [("keep_slots.0", 13, 12), ("sequence_offsets", 4, 3), ("past_lengths.1", 3, 2)]
)
def test_other_inputs_that_are_too_great(name: str, length: int, most: int, limits: CallLimits) -> None:
    with pytest.raises(InvalidRequest) as error:
        limits.check_call(call(limits, **{name.replace(".", "_"): length}))
    assert str(error.value) == (
        f"{name} is [{length}], the engines take up to [{most}]: build them for more, see fastmmoe build --help"
    )


def test_shapes_of_outputs() -> None:
    """10 rows of two sequences, 6 of them visual, of which the sites leave 4 and 1."""
    manifest = engine_manifest()
    lengths = {"position_ids": 10, "sequence_offsets": 3, "visual_index": 6, "keep_slots.0": 4, "keep_slots.1": 1}
    shapes = {name: (length,) for name, length in lengths.items()} | {f"past_lengths.{g}": (2,) for g in range(3)}
    caches = {"past_key_values.0.key": (2, 2, 256, 6)}
    assert output_shapes(manifest, shapes, caches) == {
        "logits": (2, 10),
        "next_ids": (2,),
        "next_position_ids": (2,),
        "present.0.key": (2, 2, 256, 6),
        **{f"present_lengths.{g}": (2,) for g in range(3)},
        "kept_index.0": (8,),
        "kept_index.1": (5,),
    }


def test_all_outputs_have_a_shape(limits: CallLimits) -> None:
    manifest = engine_manifest()
    shapes = {name: shape for name, (shape, _) in limits.prefill_inputs().items()}
    of_caches = signatures.cache_shapes(
        manifest.language_model, manifest.policy, manifest.activation_dtype, 2, [256, 256, 256]
    )
    found = output_shapes(manifest, shapes, {name: shape for name, (shape, _) in of_caches.items()})
    outputs = signatures.signatures(manifest)["language_model"].outputs
    assert found.keys() == {tensor.name for tensor in outputs}
    for tensor in outputs:
        fixed = [(a, b) for a, b in zip(found[tensor.name], tensor.shape, strict=True) if b != ""]
        assert all(a == b for a, b in fixed)
