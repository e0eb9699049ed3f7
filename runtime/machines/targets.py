# SPDX-License-Identifier: Apache-2.0
"""What a bundle can be made for. A new target is one entry of `TARGETS`; what its devices can do is in devices.py."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Release:
    """A TensorRT version of a target.

    Attributes:
        version: the first numbers of TensorRT's version, "10.16". cuda: the CUDA it comes with.
        source: what it is installed with.
        is_checked: the plugin was loaded by this version's libraries, or engines were built with it.
    """

    version: str
    cuda: str
    source: str
    is_checked: bool


@dataclass(frozen=True)
class TensorRT:
    """How a target's engines are built.

    Attributes:
        module: name of the Python package. install: how a user gets it.
        releases: versions meant for the target, the primary one first.
        architecture: of the machines, as `platform.machine()` says it.
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
class Target:
    """One kind of machine.

    Attributes:
        dtypes: that its kernels take, by the names a user gives; the first is the default.
        devices: those of `DEVICES` it is for; an engine target may run on others of its compute capabilities.
        tensorrt: None where ONNX Runtime's CPU provider runs the graphs. It computes no 16-bit floats: there a 16-bit
            dtype is a storage type of expert weights, and every graph boundary and every other weight is float32.
    """

    name: str
    dtypes: tuple[str, ...]
    devices: tuple[str, ...]
    tensorrt: TensorRT | None


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

TARGETS = {
    target.name: target
    for target in (
        Target("cpu", ("fp32", "fp16", "bf16"), (), None),
        Target("jetson-orin", ("fp16", "bf16"), ("orin-nano-8gb", "orin-nx-16gb", "agx-orin-64gb"), JETSON_ORIN),
        Target("rtx", ("fp16", "bf16"), ("a100-sxm-80gb", "l4"), RTX),
    )
}
