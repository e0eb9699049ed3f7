# SPDX-License-Identifier: Apache-2.0
"""Which nodes of a language model's graph are there for pruning only: site by site, from the graph's edges."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx

from benchmark_tools.errors import BenchmarkError
from fastmmoe.runtime.bundle import graph_io
from fastmmoe.runtime.method.policy import Site

TOKEN_PRUNE, SPARSE_MOE = "FmmTokenPrune", "FmmSparseMoE"
# Inputs of FmmTokenPrune that the model has without it: hidden_states and residual.
STATES = 2


class SiteNodes:
    """The nodes of a graph's prune sites, by name.

    A site's nodes are those that the pruned rows need and the rows before the site do not: the operator itself, the
    attention rows it looks at, the routing of visual tokens; for SparseVLM its raters and its clustering.

    Args:
        graph: of a model whose layers all have a MoE block without shared experts.
        sites: `Policy.sites`.
    Raises:
        BenchmarkError: the graph is not built as that.
    """

    def __init__(self, graph: onnx.GraphProto, sites: Sequence[Site]) -> None:
        self._nodes = list(graph.node)
        self._names = {node.name for node in self._nodes}
        self._producer = {name: i for i, node in enumerate(self._nodes) for name in node.output if name}
        self._moe = [i for i, node in enumerate(self._nodes) if node.op_type == SPARSE_MOE]
        self._sites: list[set[int]] = []
        for s, site in enumerate(sites):
            self._sites.append(self._find(s, site))

    def original_name(self, name: str) -> str:
        """The name in the graph of a node that ONNX Runtime may have fused; it appends "/..." to a node's name."""
        while name not in self._names and "/" in name:
            name = name.rpartition("/")[0]
        return name

    def of_sites(self, sites: Iterable[int]) -> set[str]:
        """Names of all nodes of these sites."""
        return {self._nodes[i].name for s in sites for i in self._sites[s]}

    def choosing(self, sites: Iterable[int]) -> set[str]:
        """Names of the nodes that choose and move rows: FmmTokenPrune, or all nodes of a site that has none."""
        found: set[str] = set()
        for s in sites:
            nodes = [self._nodes[i] for i in self._sites[s]]
            found |= {node.name for node in nodes if node.op_type == TOKEN_PRUNE} or {node.name for node in nodes}
        return found

    def _find(self, s: int, site: Site) -> set[int]:
        chooser = self._producer[graph_io.kept_index(s)]
        inputs = self._nodes[chooser].input
        if self._nodes[chooser].op_type == TOKEN_PRUNE:
            return self._upstream(inputs) - self._upstream(inputs[:STATES]) | {chooser}
        earlier = set().union(*self._sites)
        return self._upstream([self._next_input(site.layer)]) - self._upstream([self._output(site.layer)]) - earlier

    def _output(self, layer: int) -> str:
        """The residual stream after a layer: the sum that takes what its experts give."""
        experts = self._nodes[self._moe[layer]].output[0]
        sums = [node.output[0] for node in self._nodes if node.op_type == "Add" and experts in node.input]
        if len(sums) != 1:
            raise BenchmarkError(f"layer {layer}: {len(sums)} sums take the experts' output, expected one")
        return sums[0]

    def _next_input(self, layer: int) -> str:
        """The residual stream that the next layer starts from."""
        prefix = f"layers.{layer + 1}.input_layernorm/"
        for node in self._nodes:
            if node.name.startswith(prefix):
                return node.input[0]
        raise BenchmarkError(f"no node {prefix}*: expected a layer after layer {layer}, which prunes at its output")

    def _upstream(self, values: Iterable[str]) -> set[int]:
        """The nodes that these values depend on."""
        found: set[int] = set()
        waiting = [self._producer[value] for value in values if value in self._producer]
        while waiting:
            i = waiting.pop()
            if i not in found:
                found.add(i)
                waiting += [self._producer[value] for value in self._nodes[i].input if value in self._producer]
        return found
