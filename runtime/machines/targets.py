# SPDX-License-Identifier: Apache-2.0
"""The kinds of machine a bundle can be made for. A new one is an entry of `TARGETS`; devices.py says what it can do."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Release:
    """A TensorRT version of a target.

    Attributes:
        version: the first numbers of TensorRT's version, "10.16".
        cuda: the CUDA it comes with.
        source: what it is installed with.
        is_checked: the plugin was loaded by this version's libraries, or engines were built with it.
    """

    version: str
    cuda: str
    source: str
    is_checked: bool


@dataclass(frozen=True)
class TensorRT:
    """TensorRT on a target, and how its engines are built.

    Attributes:
        module: name of the Python package.
        install: how a user gets it.
        releases: versions meant for the target, the primary one first.
        architecture: that of the machines, as `platform.machine()` says it.
        compute_capabilities: 87 for 8.7; the plugin has kernels for them.
        is_ahead_of_time: one engine serves all of them and is built without a GPU, so the exporter builds it at once.
            Otherwise engines are built on the device and serve only devices like it.
    """

    module: str
    install: str
    releases: tuple[Release, ...]
    architecture: str
    compute_capabilities: tuple[int, ...]
    is_ahead_of_time: bool


@dataclass(frozen=True)
class KernelLimits:
    """Sizes that the kernels take on a target.

    Attributes:
        most_experts: experts of a layer.
        columns_multiple: weight format -> what H and I are multiples of.
        head_multiple: what the widths of heads and latents are multiples of.
        most_head_width: of keys and of values.
        most_latent: of a latent, and of the values in it.
    """

    most_experts: int
    columns_multiple: dict[str, int]
    head_multiple: int
    most_head_width: int
    most_latent: tuple[int, int]


@dataclass(frozen=True)
class Target:
    """One kind of machine.

    Attributes:
        dtypes: what a user may give for --dtype; the first is the default.
        activation_dtypes: for each of them the element type of graph boundaries and of every weight but the experts';
            ONNX Runtime's CPU provider computes no 16-bit floats, so there a 16-bit dtype stores expert weights only.
        expert_formats: legal formats of the routed experts' weights.
        kernels: their limits; None = those of the operators' contract alone.
        opsets: for each of the dtypes the version of the graphs' standard operators; what reads them must know it.
        is_portable: bundles hold the variant whose operators have function bodies.
        backend: what runs its bundles.
        devices: those of `DEVICES` it is for; an engine target may run on others of its compute capabilities.
        tensorrt: how its engines are built; None where it has none.
        next_step: what the user can do after an export; {out} is the bundle, quoted for a shell.
    """

    name: str
    dtypes: tuple[str, ...]
    activation_dtypes: tuple[str, ...]
    expert_formats: tuple[str, ...]
    kernels: KernelLimits | None
    opsets: tuple[int, ...]
    is_portable: bool
    backend: Literal["onnxruntime", "tensorrt"]
    devices: tuple[str, ...]
    tensorrt: TensorRT | None
    next_step: str


JETSON_ORIN = TensorRT(
    module="tensorrt",
    install="on JetPack it is the apt package python3-libnvinfer, which virtual environments see only if they were "
    "made with --system-site-packages",
    releases=(
        Release("10.16", cuda="13.2", source="JetPack 7.2", is_checked=True),
        Release("10.3", cuda="12.6", source="JetPack 6.2", is_checked=False),
    ),
    architecture="aarch64",
    compute_capabilities=(87,),
    is_ahead_of_time=False,
)

RTX = TensorRT(
    module="tensorrt_rtx",
    install="pip install 'tensorrt-rtx==1.7.1.*'",
    releases=(Release("1.7", cuda="13", source="PyPI", is_checked=True),),
    architecture="x86_64",
    compute_capabilities=(80, 86, 89, 120),
    is_ahead_of_time=True,
)

CUDA_KERNELS = KernelLimits(
    most_experts=256,
    columns_multiple={"float": 16, "int8": 16, "int4": 32},
    head_multiple=8,
    most_head_width=128,
    most_latent=(576, 512),
)
"""Those of kernel.h in plugins/sparse_moe/cuda and plugins/attention/cuda; a test compares them."""

_with_engines = functools.partial(
    Target,
    dtypes=("fp16", "bf16"),
    activation_dtypes=("float16", "bfloat16"),
    expert_formats=("float", "int8", "int4"),
    kernels=CUDA_KERNELS,
    # The parser of TensorRT 10.3 (JetPack 6.2) reads none after 20: norms and the tower's attention are spelled out.
    # There is no Conv of bfloat16 before 22.
    opsets=(20, 22),
    is_portable=False,
    backend="tensorrt",
)

TARGETS = {
    target.name: target
    for target in (
        Target(
            name="cpu",
            dtypes=("fp32", "fp16", "bf16"),
            activation_dtypes=("float32", "float32", "float32"),
            expert_formats=("float",),
            kernels=None,
            opsets=(23, 23, 23),
            is_portable=True,
            backend="onnxruntime",
            devices=(),
            tensorrt=None,
            next_step="run it: fastmmoe run {out} --image a.png --prompt '...'",
        ),
        _with_engines(
            name="jetson-orin",
            devices=("orin-nano-8gb", "orin-nx-16gb", "agx-orin-64gb"),
            tensorrt=JETSON_ORIN,
            next_step="copy {out} to the Jetson and build its engines there: fastmmoe build {out}. To try the model "
            "here, export with --target cpu",
        ),
        _with_engines(
            name="rtx",
            devices=("a100-sxm-80gb", "l4"),
            tensorrt=RTX,
            next_step="the engines are there: fastmmoe run {out} --image a.png --prompt '...'; to build them with "
            "other limits: fastmmoe build {out}",
        ),
    )
}
