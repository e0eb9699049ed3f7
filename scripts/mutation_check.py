# SPDX-License-Identifier: Apache-2.0
"""Remove every barrier and every wait for a copy from the CUDA kernels, one at a time, and see which test notices.

    python scripts/mutation_check.py [--list] [--only TEXT] [--write FILE]

Works on a copy of the tree under .build. Prints a line for each place: killed, or survived with the reason why it is
not needed for the result. Exit code 1 where one survives without a reason, or where a reason is given for none.
--write puts the table into FILE between `<!-- mutation_check -->` and `<!-- end of mutation_check -->`.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from markers import MissingMarkers, table, write_part

REPOSITORY = Path(__file__).resolve().parents[1]
COPY = REPOSITORY / ".build" / "mutants"
COPIED = ("plugins", "scripts", "tests", "pyproject.toml", "fastmmoe")

# What runs for a mutant of a file or folder, the likeliest to fail first; the first failure ends it.
EXPERTS, ROUTING, PRUNING, ATTENDING, LINEAR = (
    f"tests/plugins/cuda/test_{name}.py"
    for name in (
        "sparse_moe_experts",
        "sparse_moe_emulated",
        "token_prune_emulated",
        "attention_emulated",
        "linear_emulated",
    )
)
TESTS = {
    "attention": (ATTENDING,),
    "linear": (LINEAR,),
    "sparse_moe/cuda/route.cuh": (ROUTING, EXPERTS),
    "sparse_moe/cuda/sort.cuh": (ROUTING, EXPERTS),
    "sparse_moe": (EXPERTS, ROUTING),
    "token_prune": (PRUNING,),
    "common/cuda/few_rows.cuh": (LINEAR, EXPERTS),
    "common/cuda/tile_products.cuh": (LINEAR, EXPERTS),
    "common": (PRUNING, ROUTING, EXPERTS, ATTENDING),
}
# Tests of other tools, which a missing barrier does not concern.
DESELECTED = "not nvcc"

SITE = re.compile(
    r"(__syncthreads|__syncwarp|copy_async_wait_all|copy_async_wait<[^;]*>)\(\)(?=;)|__syncthreads_(?:or|and|count)\("
)
REPLACEMENT = {f"__syncthreads_{vote}(": "(" for vote in ("or", "and", "count")}
DEFINITION = "ptx.cuh"

# Places whose removal changes no result, and why they stay.
ORDERS_MEMORY = "lanes meet in a warp function anyway; this orders their accesses to memory, which is not emulated"
REDUNDANT = {
    "sparse_moe/cuda/route.cuh#2": ORDERS_MEMORY,
    "sparse_moe/cuda/sort.cuh#2": ORDERS_MEMORY,
    "sparse_moe/cuda/sort.cuh#8": ORDERS_MEMORY,
}


@dataclasses.dataclass(frozen=True)
class Site:
    """One barrier or wait: file below plugins/, its place among the file's, line, text and offset."""

    file: str
    number: int
    line: int
    text: str
    start: int
    end: int

    @property
    def name(self) -> str:
        """Stays the same when lines are added above."""
        return f"{self.file}#{self.number}"

    def removed(self, source: str) -> str:
        """The file without it."""
        replacement = REPLACEMENT.get(self.text, "static_cast<void>(0)")
        return source[: self.start] + replacement + source[self.end :]


def sites_of(folder: Path) -> list[Site]:
    """Every place in the kernels and in what they share; comments do not count."""
    files = [*folder.glob("*/cuda/*.cu*"), *folder.glob("common/cuda/*.h")]
    sites = []
    for path in sorted(files):
        if path.name == DEFINITION:
            continue
        source = path.read_text(encoding="utf-8")
        code = re.sub(r"//[^\n]*", lambda comment: " " * len(comment[0]), source)
        for number, match in enumerate(SITE.finditer(code), start=1):
            line = source.count("\n", 0, match.start()) + 1
            name = path.relative_to(folder).as_posix()
            sites.append(Site(name, number, line, match[0], match.start(), match.end()))
    return sites


def copy_tree() -> None:
    """A fresh copy of the tree; what was built in the last one stays."""
    COPY.mkdir(parents=True, exist_ok=True)
    for name in COPIED:
        target = COPY / name
        if target.is_dir():
            shutil.rmtree(target)
        if (REPOSITORY / name).is_dir():
            shutil.copytree(REPOSITORY / name, target, ignore=shutil.ignore_patterns("__pycache__", "lib"))
        else:
            shutil.copyfile(REPOSITORY / name, target)


def run_tests(files: tuple[str, ...]) -> tuple[bool, str]:
    """Whether all tests pass in the copy, and what happened if not: the first that fails, or that the process ends."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-k", DESELECTED, *files]
    done = subprocess.run(command, cwd=COPY, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return True, ""
    if done.returncode < 0:
        return False, f"the process, by {signal.Signals(-done.returncode).name},"
    failed = re.search(r"^(?:FAILED|ERROR) (\S.*?)(?: - .*)?$", done.stdout, re.MULTILINE)
    if failed is None:
        sys.exit(f"pytest ended with exit code {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return False, f"`{failed[1].rpartition('::')[2]}`"


def tests_of(site: Site) -> tuple[str, ...]:
    """The test files that run for it."""
    return TESTS.get(site.file) or TESTS[site.file.partition("/")[0]]


def check(site: Site) -> tuple[bool, str]:
    """Whether the tests pass without the site, and the first that does not."""
    path = COPY / "plugins" / site.file
    source = path.read_text(encoding="utf-8")
    path.write_text(site.removed(source), encoding="utf-8")
    try:
        return run_tests(tests_of(site))
    finally:
        path.write_text(source, encoding="utf-8")


def results_table(results: list[tuple[Site, bool, str]]) -> str:
    """The results in Markdown."""
    rows = []
    for site, survived, test in results:
        text = site.text.removesuffix("(")
        effect = f"no test fails: {REDUNDANT.get(site.name, 'no reason known')}" if survived else f"{test} fails"
        rows.append((f"`{site.name}`", f"`{text}`", effect))
    return table(("place", "what", "without it"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="Remove barriers from the CUDA kernels and see which test notices.")
    parser.add_argument("--list", action="store_true", help="print the places and stop")
    parser.add_argument("--only", default="", metavar="TEXT", help="only places whose name holds TEXT")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table into FILE")
    arguments = parser.parse_args()
    sites = [site for site in sites_of(REPOSITORY / "plugins") if arguments.only in site.name]
    if arguments.list:
        sys.exit(print("\n".join(f"{s.name}  line {s.line}: {s.text}" for s in sites)))
    copy_tree()
    if not run_tests(tuple(dict.fromkeys(test for site in sites for test in tests_of(site))))[0]:
        sys.exit("the tests fail without a change")
    results = []
    for site in sites:
        start = time.perf_counter()
        survived, test = check(site)
        results.append((site, survived, test))
        outcome = f"survived: {REDUNDANT.get(site.name, 'NO REASON KNOWN')}" if survived else f"killed: {test} fails"
        print(f"{site.name:32} line {site.line:4} {outcome} ({time.perf_counter() - start:.0f} s)", flush=True)
    if arguments.write:
        try:
            write_part(arguments.write, "mutation_check", results_table(results))
        except MissingMarkers as error:
            sys.exit(str(error))
    survivors = {site.name for site, survived, _ in results if survived}
    wrong = (survivors ^ REDUNDANT.keys()) & {site.name for site in sites}
    sys.exit(f"survived without a reason, or a reason without a survivor: {', '.join(sorted(wrong))}" if wrong else 0)


if __name__ == "__main__":
    main()
