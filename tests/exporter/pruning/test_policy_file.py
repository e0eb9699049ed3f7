# SPDX-License-Identifier: Apache-2.0
"""policy.json: what is written is read, what is damaged is refused, and the export's options take it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fastmmoe.exporter.cli import read_arguments
from fastmmoe.exporter.config import ExportConfig
from fastmmoe.exporter.pruning.policy_file import PolicyFile, read_policy, write_policy
from fastmmoe.exporter.pruning.settings import FAMILY_ROWS, PolicyModel, PolicyOptions
from fastmmoe.runtime.errors import InvalidRequest

POLICY = PolicyFile(
    prune_layers=(1, 4),
    stage_exponents=(0.1 + 0.2, 1.0),
    retention=0.3,
    alpha=0.7,
    merge_ratio=0.1,
    window=4,
    merge="mean",
    reduction_weights="none",
    visual_top_k=(1, 4, 2, 3, 4),
    model=PolicyModel(
        family="deepseek_vl2", layers=6, moe_layers=(1, 2, 3, 4, 5), top_k=4, checkpoint_identity="ab" * 32
    ),
)
OPTIONS = PolicyOptions(
    method="fastmmoe",
    retention=0.3,
    prune_layers=(1, 4),
    stage_exponents=(0.1 + 0.2, 1.0),
    visual_top_k=(1, 4, 2, 3, 4),
    alpha=0.7,
    merge_ratio=0.1,
    window=4,
    merge="mean",
    reduction_weights="none",
    found_for=POLICY.model,
)
KEYS = (
    "format",
    "method",
    "prune_layers",
    "stage_exponents",
    "retention",
    "alpha",
    "merge_ratio",
    "window",
    "merge",
    "reduction_weights",
    "visual_top_k",
    "model",
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A written policy.json."""
    path = tmp_path / "policy.json"
    write_policy(path, POLICY)
    return path


def change(path: Path, **values: Any) -> None:
    """Set keys of a JSON file; a value of ... takes the key away, "model.KEY" is a key of the model."""
    data = json.loads(path.read_text())
    for name, value in values.items():
        holder = data["model"] if name.startswith("model.") else data
        key = name.removeprefix("model.")
        if value is ...:
            del holder[key]
        else:
            holder[key] = value
    path.write_text(json.dumps(data))


def test_what_is_written_is_read(file: Path) -> None:
    """Floats bit by bit; the keys are those of the documentation, readable, in this order."""
    assert read_policy(file) == POLICY
    assert tuple(json.loads(file.read_text())) == KEYS
    assert file.read_text().endswith("}\n") and len(file.read_text().splitlines()) > len(KEYS)


def test_every_key_is_documented() -> None:
    text = (Path(__file__).resolve().parents[3] / "docs" / "methods.md").read_text(encoding="utf-8")
    missing = [key for key in (*KEYS, *PolicyModel.__struct_fields__) if f"`{key}`" not in text]
    assert missing == []


def test_the_defaults_of_every_family_are_documented() -> None:
    text = (Path(__file__).resolve().parents[3] / "docs" / "methods.md").read_text(encoding="utf-8")
    for family, row in FAMILY_ROWS.items():
        layers = ", ".join(map(str, row.prune_layers))
        assert f"| `{family}` | {row.layers} | {layers} | {row.alpha} | {row.merge_ratio} |" in text


def test_its_options_are_all_its_settings() -> None:
    assert POLICY.options() == OPTIONS
    settings = set(KEYS) - {"format", "model"}
    assert settings <= set(PolicyOptions.__dataclass_fields__)


def test_an_old_file_is_replaced_in_new_folders_too(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "policy.json"
    for retention in (0.4, 0.5):
        write_policy(path, msgspec.structs.replace(POLICY, retention=retention))
        assert read_policy(path).retention == retention
    assert [p.name for p in path.parent.iterdir()] == ["policy.json"]


def test_a_failed_write_leaves_the_old_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        write_policy(file, msgspec.structs.replace(POLICY, retention=0.9))
    assert read_policy(file) == POLICY
    assert [p.name for p in file.parent.iterdir()] == ["policy.json"]


BAD_VALUES: list[tuple[dict[str, Any], str]] = [
    ({"prune_layers": ()}, "prune_layers : expected one or more of model.moe_layers (1,2,3,4,5), ascending"),
    ({"prune_layers": (4, 1)}, "prune_layers 4,1: expected one or more of model.moe_layers (1,2,3,4,5), ascending"),
    ({"prune_layers": (1, 1)}, "prune_layers 1,1: expected one or more of"),
    ({"prune_layers": (0, 4)}, "prune_layers 0,4: expected one or more of"),
    ({"stage_exponents": (0.5,)}, "stage_exponents 0.5: expected 2 (one for each prune layer), ascending"),
    ({"stage_exponents": (0.5, 0.9)}, "stage_exponents 0.5,0.9: expected 2"),
    ({"retention": 0.0}, "retention 0.0: expected a number in (0, 1]"),
    ({"alpha": 1.5}, "alpha 1.5: expected 0 to 1"),
    ({"merge_ratio": -0.1}, "merge_ratio -0.1: expected 0 to 1"),
    ({"window": 0}, "window 0: expected 1 to 64"),
    ({"visual_top_k": (1, 2)}, "visual_top_k 1,2: expected 5 (one for each MoE layer) of 1 to 4"),
    ({"visual_top_k": (5, 1, 1, 1, 1)}, "visual_top_k 5,1,1,1,1: expected 5"),
]


@pytest.mark.parametrize(("values", "message"), BAD_VALUES)
def test_values_outside_their_range(values: dict[str, Any], message: str, file: Path) -> None:
    """Refused when read and when written; the message names the file and the key."""
    with pytest.raises(InvalidRequest) as caught:
        write_policy(file, msgspec.structs.replace(POLICY, **values))
    assert str(caught.value).startswith(f"{file}: {message}")
    assert read_policy(file) == POLICY
    change(file, **values)
    with pytest.raises(InvalidRequest) as caught:
        read_policy(file)
    assert str(caught.value).startswith(f"{file}: {message}")


def test_nan_is_not_written(tmp_path: Path) -> None:
    """JSON has none."""
    for name in ("alpha", "merge_ratio", "retention"):
        with pytest.raises(InvalidRequest, match=f"{name} nan: expected"):
            write_policy(tmp_path / "policy.json", msgspec.structs.replace(POLICY, **{name: math.nan}))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"format": 2}, (": policy format 2, fastmmoe ", " reads format 1; calibrate again")),
        ({"format": ...}, ("missing required field `format`",)),
        ({"beta": 0.5}, ("unknown field `beta`",)),
        ({"model.beta": 0.5}, ("unknown field `beta`", "$.model")),
        ({"alpha": ...}, ("missing required field `alpha`",)),
        ({"alpha": "0.5"}, ("Expected `float`, got `str`", "$.alpha")),
        ({"method": "fastv"}, ("Invalid enum value 'fastv'", "$.method")),
        ({"merge": "max"}, ("Invalid enum value 'max'", "$.merge")),
        ({"model.top_k": None}, ("Expected `int`, got `null`", "$.model.top_k")),
        ({"model.top_k": 2**31}, ("Expected `int` <= 16", "$.model.top_k")),
        ({"model.layers": 0}, ("Expected `int` >= 1", "$.model.layers")),
        ({"model.moe_layers": [-1]}, ("Expected `int` >= 0", "$.model.moe_layers[0]")),
        ({"visual_top_k": [1] * 100_000}, ("visual_top_k 1,1,1,", " and 99872 more: expected 5")),
        ({"prune_layers": [1] * 100_000}, ("prune_layers 1,1,1,", " and 99872 more: expected one or more of")),
    ],
)
def test_other_contents(values: dict[str, Any], words: tuple[str, ...], file: Path) -> None:
    change(file, **values)
    with pytest.raises(InvalidRequest) as caught:
        read_policy(file)
    message = str(caught.value)
    assert message.startswith(f"{file}: ") and all(word in message for word in words), message
    assert len(message.splitlines()) == 1 and len(message) < 1000


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b'{"format": 1}',
        b'{"format": 1, "format": 1}',
        b'{"format": NaN}',
        b'{"format": ' + b"9" * 5000 + b"}",
        b'{"format": 1, "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_what_is_no_policy(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    path.write_bytes(data)
    with pytest.raises(InvalidRequest) as caught:
        read_policy(path)
    assert str(caught.value).startswith(f"{path}: not a policy.json that calibration wrote: ")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for path, why in ((tmp_path / "none.json", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(InvalidRequest) as caught:
            read_policy(path)
        assert str(caught.value) == f"{path}: {why}; give a policy.json that calibration wrote"


@pytest.fixture
def parse(file: Path) -> Callable[..., PolicyOptions]:
    """Function (*flags) -> the settings of fastmmoe-export demo OUT --policy FILE *flags."""
    return lambda *flags: read_arguments(["demo", "out", "--policy", str(file), *flags]).policy


@pytest.mark.parametrize(
    ("flags", "values"),
    [
        ((), {}),
        (("--method", "all"), {"method": "all"}),
        # An option's default is given, too, where it is given.
        (("--retention", "0.5"), {"retention": 0.5}),
        (("--window", "3", "--merge", "mlerp"), {"window": 3, "merge": "mlerp"}),
        (("--prune-layers", "2,3"), {"prune_layers": (2, 3)}),
        (("--alpha", "0", "--merge-ratio", "0"), {"alpha": 0.0, "merge_ratio": 0.0}),
        (("--reduction-weights", "preserve_sum"), {"reduction_weights": "preserve_sum"}),
        (("--expert-factor", "0.5"), {"expert_factor": 0.5, "visual_top_k": None}),
        (("--sparsevlm-positions", "original"), {"sparsevlm_positions": "original"}),
    ],
)
def test_options_beside_the_file_override_it(
    flags: tuple[str, ...], values: dict[str, Any], parse: Callable[..., PolicyOptions]
) -> None:
    assert parse(*flags) == replace(OPTIONS, **values)


def test_options_without_a_file() -> None:
    """Settings that are not given are the defaults; the other options are where they were."""
    config = read_arguments(["demo", "out", "--alpha", "0.25", "--dtype", "fp16", "--overwrite"])
    assert config.policy == PolicyOptions(alpha=0.25)
    assert (config.model, config.out, config.dtype, config.overwrite) == ("demo", Path("out"), "fp16", True)
    assert read_arguments(["demo"]) == ExportConfig(model="demo")
