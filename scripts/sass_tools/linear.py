# SPDX-License-Identifier: Apache-2.0
"""The least time that a model's linear layers can take on a device, by its data sheet (roofline.py).

Those of a call of the language model: projections, shared experts, dense MLPs, and the head for one row. Bytes are
those of the weights with their scales, of the rows and of the results, each once. Weights of 16 bits are products of
TensorRT's own: of them bytes and operations are counted, not how they are cut into blocks. Nothing here is measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from markers import table

from fastmmoe.exporter.fit.sizes import read_sizes
from fastmmoe.exporter.manifest import language_model_info
from fastmmoe.runtime.cost.weights import HEAD, decoder_linear_layers
from fastmmoe.runtime.machines.devices import Device
from sass_tools.launches import Launch, LinearCase
from sass_tools.roofline import ACTIVATION_BYTES, LINEAR, WEIGHTS, Estimate, Weights, Work, estimate
from sass_tools.tables import three_digits

MODELS = {"DeepSeek-VL2-small": "deepseek-vl2-small", "InternVL3.5-30B-A3B": "InternVL3_5-30B-A3B"}
"""Names as in roofline.py -> those of the published configurations."""
ROWS = (1, 64, 512)
HEAD_OF_INT4 = "int8"


@dataclass(frozen=True)
class Product:
    """`count` linear layers of a model: x [rows, K] times weights [N, K]."""

    K: int
    N: int
    rows: int
    weights: Weights
    count: int

    @property
    def case(self) -> LinearCase:
        """The call of FmmLinear."""
        return LinearCase(self.rows, self.K, self.N, self.weights.weight_format, self.weights.group_size)

    def work(self, padded_rows: int, blocks: int) -> Work:
        """Of one layer.

        Args:
            padded_rows: those that are multiplied.
        """
        rows = self.rows * (self.K + self.N) * ACTIVATION_BYTES
        moved = self.N * self.K * self.weights.bytes_each + rows
        return Work(LINEAR, moved, 2 * padded_rows * self.N * self.K, uses_tensor_cores=True, blocks=blocks)


def products(model: str, weights: Weights, rows: int) -> Iterator[Product]:
    """The linear layers of a call of this model's language model."""
    for part, N, K, count in decoder_linear_layers(language_model_info(read_sizes(MODELS[model]).config)):
        if part == HEAD:
            of_head = next(w for w in WEIGHTS if w.weight_format == HEAD_OF_INT4)
            yield Product(K, N, 1, of_head if weights.weight_format == "int4" else weights, count)
        else:
            yield Product(K, N, rows, weights, count)


def cases() -> list[LinearCase]:
    """Every call of FmmLinear in the table."""
    found = (
        product
        for model in MODELS
        for weights in WEIGHTS
        for rows in ROWS
        for product in products(model, weights, rows)
    )
    return list(dict.fromkeys(product.case for product in found if product.weights.group_size))


def time_of(product: Product, launches: dict[LinearCase, list[Launch]], device: Device) -> Estimate:
    """The least time of one of the product's layers."""
    if not product.weights.group_size:
        return estimate(product.work(product.rows, device.multiprocessors), device)
    (launch,) = launches[product.case]
    x, y, _ = launch.grid
    # A tile's rows are as many for all of them, those of few rows 8.
    padded = x * int(launch.kernel.partition("Tile<")[2].partition(",")[0]) if "Tile<" in launch.kernel else 8
    return estimate(product.work(padded, x * y), device)


def linear_table(launches: dict[LinearCase, list[Launch]], devices: list[Device]) -> str:
    """Microseconds of all linear layers of a call: a line for model, weights and rows, a column for every device."""
    lines = []
    for model in MODELS:
        for weights in WEIGHTS:
            for rows in ROWS:
                of_call = list(products(model, weights, rows))
                cells = []
                for device in devices:
                    times = [(product.count, time_of(product, launches, device)) for product in of_call]
                    computing = sum(count * time.us for count, time in times if time.compute_us > time.memory_us)
                    total = sum(count * time.us for count, time in times)
                    cells.append(three_digits(total) + (" c" if computing > total / 2 else ""))
                lines.append([model, weights.name, str(rows), str(sum(product.count for product in of_call)), *cells])
    return table(["model", "weights", "rows", "layers", *(device.name for device in devices)], lines, numbers_from=2)
