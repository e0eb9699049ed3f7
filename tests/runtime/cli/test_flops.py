# SPDX-License-Identifier: Apache-2.0
"""fastmmoe flops and plan-retention: their arguments and tables; their counts are in tests/runtime/cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from fastmmoe.runtime.bundle.manifest import load_manifest, write_manifest
from fastmmoe.runtime.cli.flops import PARTS, PromptSize, _gflops
from fastmmoe.runtime.cli.main import main
from fastmmoe.runtime.cost.flops import PrefillFlops, count_request

COUNTS = ("--visual-tokens", "16", "--text-tokens", "4")


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main([*arguments]) == 0
    return capsys.readouterr().out


@pytest.fixture
def comparison(toy_bundle: Path) -> Path:
    """The toy bundle with two methods."""
    manifest = load_manifest(toy_bundle)
    layers: dict[Any, tuple[int, ...]] = {"fastmmoe": (1, 2), "random": (1, 2), "fastv": (2,), "sparsevlm": (1, 2)}
    policy = replace(manifest.policy, method="all", prune_layers=layers)
    write_manifest(toy_bundle, replace(manifest, policy=policy))
    return toy_bundle


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "give --image and --prompt, or --visual-tokens and --text-tokens"),
        (("--visual-tokens", "3"), "--visual-tokens and --text-tokens go together"),
        (("--text-tokens", "3"), "--visual-tokens and --text-tokens go together"),
        ((*COUNTS, "--prompt", "a"), "take the place of --image, --prompt, --max-tiles"),
        ((*COUNTS, "--max-tiles", "1"), "take the place of --image, --prompt, --max-tiles"),
        (("--visual-tokens", "-1", "--text-tokens", "3"), "--visual-tokens -1: expected 0 or more"),
        (("--visual-tokens", "1", "--text-tokens", "-3"), "--text-tokens -3: expected 0 or more"),
        ((*COUNTS, "--tiles", "-2"), "--tiles -2: expected 0 or more"),
        (("--prompt", "a", "--tiles", "2"), "--tiles goes with --visual-tokens; of pictures the tiles are counted"),
        (("--prompt", "caf\udce9"), "--prompt 'caf\\udce9': is not valid"),
    ],
)
@pytest.mark.parametrize("command", [("flops",), ("plan-retention", "--flops-reduction", "0.1")])
def test_prompts_that_cannot_be_counted(
    command: tuple[str, ...],
    arguments: tuple[str, ...],
    words: str,
    toy_bundle: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([*command, str(toy_bundle), *arguments]) == 2
    line = capsys.readouterr().err
    assert words in line and line.count("\n") == 1


def test_numbers_that_are_none(toy_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["flops", str(toy_bundle), *COUNTS, "--retention", "1.0,half"])
    assert "'half': expected a share such as 0.5, or 50%" in capsys.readouterr().err


def test_each_method_and_retention_once(comparison: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def lines(*arguments: str) -> list[tuple[str, float]]:
        found = json.loads(printed(capsys, "flops", str(comparison), *COUNTS, "--json", *arguments))
        return [(one["method"], one["retention"]) for one in found["requests"]]

    defaults = [1.0, 0.75, 0.5, 0.25]
    methods = ("fastmmoe", "random", "fastv", "sparsevlm")
    assert lines() == [("none", 1.0), *((method, r) for method in methods for r in defaults)]
    assert lines("-r", "0.5,0.25,0.5", "--method", "random, fastv,random,none") == [
        ("random", 0.5),
        ("random", 0.25),
        ("fastv", 0.5),
        ("fastv", 0.25),
        ("none", 1.0),
    ]


def test_numbers_of_the_json_are_those_of_the_counter(toy_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(printed(capsys, "flops", str(toy_bundle), *COUNTS, "--tiles", "2", "-r", "0.25", "--json"))
    expected = count_request(load_manifest(toy_bundle), tokens=20, visual_tokens=16, tiles=2, retention=0.25)
    (none, request) = found["requests"]
    assert (none["method"], none["reduction"], none["total"]) == ("none", 0, expected.unmodified.total)
    assert found["unmodified_total"] == expected.unmodified.total
    assert request["total"] == expected.prefill.total and request["kept_visual_tokens"] == [8, 4]
    assert request["reduction_with_vision"] == expected.reduction_with_vision
    assert (found["visual_tokens"], found["text_tokens"], found["tiles"]) == (16, 4, 2)
    assert found["vision_flops"] == expected.vision > 0
    without = json.loads(printed(capsys, "flops", str(toy_bundle), *COUNTS, "--json"))
    assert without["requests"][0]["reduction_with_vision"] is None


def test_the_table(toy_bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns without a number are left out; numbers stand to the right."""
    # Workers of a test run say 80.
    monkeypatch.setenv("COLUMNS", "120")
    lines = printed(capsys, "flops", str(toy_bundle), *COUNTS, "-r", "0.25").splitlines()
    assert lines[0] == "toy: 16 visual and 4 text tokens"
    header, none, pruned = lines[-3:]
    assert header.split() == [
        "method",
        "R",
        "visual",
        "tokens",
        "attention",
        "router",
        "routed",
        "dense",
        "head",
        "total",
        "saved",
        "pruning",
    ]
    assert none.startswith("none      1     16") and pruned.startswith("fastmmoe  0.25  16>8>4")
    assert len({len(line) for line in lines[-3:]}) == 1
    with_vision = printed(capsys, "flops", str(toy_bundle), *COUNTS, "--tiles", "2").splitlines()
    assert with_vision[0].endswith("text tokens, 2 tiles") and "+vision" in with_vision[-6]
    assert ", vision tower 0.000 GFLOPs" in with_vision[1]


@pytest.mark.parametrize(
    ("width", "columns"),
    [
        (80, "method R visual tokens attention other total saved +vision pruning"),
        (72, "method R visual tokens total saved +vision pruning"),
        (56, "method R visual tokens total saved +vision"),
        (48, "method R visual tokens total saved"),
        (40, "method R total saved"),
        (8, "method R total saved"),
    ],
)
def test_the_table_is_as_wide_as_the_terminal(
    width: int, columns: str, toy_bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    lines = printed(capsys, "flops", str(toy_bundle), *COUNTS, "--tiles", "2", "-r", "0.25").splitlines()[-3:]
    assert lines[0].split() == columns.split()
    assert all(len(line) <= max(width, 30) for line in lines)


def test_the_columns_are_the_parts_of_the_total() -> None:
    flops = PrefillFlops(**{name: 1 << i for i, name in enumerate(PrefillFlops.__dataclass_fields__)})
    assert sum(getattr(flops, name) for names in PARTS.values() for name in names) == flops.total


def test_a_plan_in_lines_and_in_json(toy_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ("plan-retention", str(toy_bundle), *COUNTS, "--max-tokens-kept", "4")
    found = json.loads(printed(capsys, *command, "--json"))
    assert (found["method"], found["kept_visual_tokens"][-1], found["retention"]) == ("fastmmoe", 4, 0.3124)
    *_, request, prefill = printed(capsys, *command).splitlines()
    assert request == "fastmmoe: retention 0.3124, pruning rate 0.6876, visual tokens 16>8>4"
    assert prefill.endswith(f"{found['reduction']:.2%} less")


def test_targets_of_a_plan_exclude_each_other(toy_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for targets in ((), ("--max-gflops", "1", "--max-tokens-kept", "1")):
        with pytest.raises(SystemExit) as end:
            main(["plan-retention", str(toy_bundle), *COUNTS, *targets])
        assert end.value.code == 2
    assert main(["plan-retention", str(toy_bundle), *COUNTS, "--flops-reduction", "1"]) == 2
    assert "flops_reduction 1.0: expected a number in [0, 1)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flops", "shown"),
    [
        (0, "0.000"),
        (9_999_400_000, "9.999"),
        (10_000_000_000, "10.00"),
        (99_990_000_000, "99.99"),
        (100_000_000_000, "100.0"),
        (1_000_000_000_000, "1,000"),
        (1_234_567_000_000_000, "1,234,567"),
    ],
)
def test_at_least_four_digits(flops: int, shown: str) -> None:
    assert _gflops(flops) == shown


def test_counts_of_a_prompt() -> None:
    assert PromptSize(16, 4, 2).counts == {"tokens": 20, "visual_tokens": 16, "rater_rows": None}
