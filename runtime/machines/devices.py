# SPDX-License-Identifier: Apache-2.0
"""Memory and speed of the GPUs that a bundle may be made for, as their data sheets say.

Nothing here was measured. The numbers are NVIDIA's published ones: the data sheets of Jetson Orin Nano, Orin NX, AGX
Orin and Thor modules and of L4, L40S, A100, H100, H200 and B200, and the architecture papers of GeForce RTX 30, 40 and
50; rates without structured sparsity. These rules fill gaps:

* Data sheets of Orin give only sparse INT8 of GPU and DLA together. The tensor rates here are those of the GPU alone:
  float16 = multiprocessors x 1024 multiply-adds x 2 x clock, which reproduces the 17 TFLOPS that NVIDIA states for
  Orin Nano, and INT8 twice that.
* GeForce sums products of float16 and of fp8 in float32, as our kernels do, at half the rate of sums in float16.
* The shared memory of a multiprocessor is the one of its compute capability in the CUDA C++ Programming Guide.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """One GPU in one power mode.

    Attributes:
        sm: compute capability, 87 for 8.7.
        clock_ghz: greatest clock of the GPU in this power mode.
        fp16_tflops: dense float16 products with tensor cores, 10^12 operations a second; a multiply-add is two.
        int8_tops: the same for int8; None where the data sheet names none.
        gb_per_s: memory bandwidth, 10^9 bytes a second.
        memory_gb: memory of the whole device; on Jetson the CPU shares it.
        shared_kb_per_sm: shared memory of a multiprocessor, in KiB.
        power_mode: the one that the numbers hold for; "" where there is only one.
        fp8_tflops: as fp16_tflops, for 8-bit floats; None where the tensor cores have none.
    """

    name: str
    sm: int
    multiprocessors: int
    clock_ghz: float
    fp16_tflops: float
    int8_tops: float | None
    gb_per_s: float
    memory_gb: float
    shared_kb_per_sm: int
    power_mode: str = ""
    fp8_tflops: float | None = None

    @property
    def memory_option(self) -> str:
        """What a user says for --memory: "64GB"."""
        return f"{self.memory_gb:g}GB"


DEVICES: dict[str, Device] = {
    "orin-nano-4gb": Device("Orin Nano 4GB", 87, 4, 1.02, 8.4, 16.7, 51, 4, 164, "25 W (Super)"),
    "orin-nano-8gb": Device("Orin Nano 8GB", 87, 8, 1.02, 17, 33, 102, 8, 164, "25 W (Super)"),
    "orin-nx-8gb": Device("Orin NX 8GB", 87, 8, 1.173, 19, 38, 102.4, 8, 164, "40 W (Super)"),
    "orin-nx-16gb": Device("Orin NX 16GB", 87, 8, 1.173, 19, 38, 102.4, 16, 164, "40 W (Super)"),
    "agx-orin-32gb": Device("AGX Orin 32GB", 87, 14, 0.93, 26.7, 53, 204.8, 32, 164, "MAXN"),
    "agx-orin-64gb": Device("AGX Orin 64GB", 87, 16, 1.3, 42.6, 85, 204.8, 64, 164, "MAXN"),
    "thor-t5000": Device("Thor T5000", 110, 20, 1.57, 258, None, 273, 128, 228, "MAXN", 517),
    "l4": Device("L4", 89, 58, 2.04, 121, 242, 300, 24, 100, fp8_tflops=242),
    "l40s": Device("L40S", 89, 142, 2.52, 362, 733, 864, 48, 100, fp8_tflops=733),
    "a100-sxm-40gb": Device("A100 SXM 40GB", 80, 108, 1.41, 312, 624, 1555, 40, 164),
    "a100-sxm-80gb": Device("A100 SXM 80GB", 80, 108, 1.41, 312, 624, 2039, 80, 164),
    "h100-sxm": Device("H100 SXM", 90, 132, 1.83, 989, 1979, 3350, 80, 228, fp8_tflops=1979),
    "h200-sxm": Device("H200 SXM", 90, 132, 1.83, 989, 1979, 4800, 141, 228, fp8_tflops=1979),
    "b200": Device("B200", 100, 148, 1.85, 2250, 4500, 8000, 180, 228, fp8_tflops=4500),
    "rtx-3090": Device("RTX 3090", 86, 82, 1.695, 71, 284, 936, 24, 100),
    "rtx-4090": Device("RTX 4090", 89, 128, 2.52, 165.2, 660.6, 1008, 24, 100, fp8_tflops=330.3),
    "rtx-5090": Device("RTX 5090", 120, 170, 2.407, 209.5, 838, 1792, 32, 100, fp8_tflops=419),
}
"""By the name a user gives. The slower power modes of Orin Nano (15 W: 0.625 GHz, 68 GB/s) and Orin NX (25 W: 0.918
GHz) are left out."""
