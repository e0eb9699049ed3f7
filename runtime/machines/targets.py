# SPDX-License-Identifier: Apache-2.0
"""The kinds of machine a bundle can be made for. A new one is an entry of `TARGETS`; devices.py says what it can do."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Literal

from fastmmoe.runtime.errors import did_you_mean
from fastmmoe.runtime.machines.devices import DEVICES


@dataclass(frozen=True)
class Release:
    """A TensorRT version of a target.

    Attributes:
        version: the first numbers of TensorRT's version, "10.16".
        cuda: the CUDA it comes with.
        python: that of its Python package; "" = any that fastmmoe takes.
        source: what it is installed with.
        is_checked: the plugin was loaded by this version's libraries, or engines were built with it.
    """

    version: str
    cuda: str
    source: str
    is_checked: bool
    python: str = ""


@dataclass(frozen=True)
class TensorRT:
    """TensorRT on a target, and how its engines are built.

    Attributes:
        module: name of the Python package.
        install: how a user gets it.
        releases: versions meant for the target, the primary one first.
        architecture: that of the machines, as `platform.machine()` says it.
        plugin: which build of the plugin library it takes, see `tensorrt_library_path`.
        compute_capabilities: 87 for 8.7; those that engines of the target run on.
        is_ahead_of_time: one engine serves all of them and is built without a GPU, so the exporter builds it at once.
            Otherwise engines are built on the device and serve only devices like it.
    """

    module: str
    install: str
    releases: tuple[Release, ...]
    architecture: str
    plugin: Literal["x86_64", "aarch64", "jetpack6"]
    compute_capabilities: tuple[int, ...]
    is_ahead_of_time: bool


@dataclass(frozen=True)
class KernelLimits:
    """Sizes that the kernels take on a target.

    Attributes:
        most_experts: experts of a layer.
        columns_multiple: weight format -> what H and I are multiples of, and K of FmmLinear, which has int8 and int4.
        outputs_multiple: what N of FmmLinear is a multiple of.
        head_multiple: what the widths of heads and latents are multiples of.
        most_head_width: of keys and of values.
        most_latent: of a latent, and of the values in it.
    """

    most_experts: int
    columns_multiple: dict[str, int]
    outputs_multiple: int
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
        dense_formats, vision_formats: those of the linear layers of the language model and of the vision tower.
        linear_layout: order of the weights of packed linear layers, as its kernels read them.
        tile_formats: dtypes and formats of the routed experts that its kernels read in tile order.
        kernels: their limits; None = those of the operators' contract alone.
        opsets: for each of the dtypes the version of the graphs' standard operators; what reads them must know it.
        is_portable: bundles hold the variant whose operators have function bodies.
        backend: what runs its bundles.
        devices: those of `DEVICES` it is for; an engine target may run on others of its compute capabilities.
        tensorrt: how its engines are built; None where it has none.
        checked: what was tried of it, and how.
        next_step: what the user can do after an export; {out} is the bundle, quoted for a shell.
    """

    name: str
    dtypes: tuple[str, ...]
    activation_dtypes: tuple[str, ...]
    expert_formats: tuple[str, ...]
    dense_formats: tuple[str, ...]
    vision_formats: tuple[str, ...]
    linear_layout: Literal["logical", "tiles"]
    kernels: KernelLimits | None
    opsets: tuple[int, ...]
    is_portable: bool
    backend: Literal["onnxruntime", "tensorrt"]
    devices: tuple[str, ...]
    tensorrt: TensorRT | None
    checked: str
    next_step: str
    tile_formats: tuple[str, ...] = ()

    @property
    def memories(self) -> dict[str, str]:
        """What a user may say for --memory, the greatest last -> the device with that memory."""
        sizes = sorted(self.devices, key=lambda name: DEVICES[name].memory_gb)
        return {DEVICES[name].memory_option: name for name in sizes}

    @property
    def shares_memory(self) -> bool:
        """Whether its GPU computes in the memory that the system lives in, as Jetsons' do."""
        return self.tensorrt is not None and self.tensorrt.architecture == "aarch64"


JETPACK_7 = TensorRT(
    module="tensorrt",
    install="on JetPack it is the apt package python3-libnvinfer, which virtual environments see only if they were "
    "made with --system-site-packages",
    releases=(Release("10.16", cuda="13.2", source="JetPack 7.2", is_checked=True, python="3.12"),),
    architecture="aarch64",
    plugin="aarch64",
    compute_capabilities=(87,),
    is_ahead_of_time=False,
)

JETPACK_6 = replace(
    JETPACK_7,
    releases=(Release("10.3", cuda="12.6", source="JetPack 6.2", is_checked=False, python="3.10"),),
    plugin="jetpack6",
)

DATA_CENTER = TensorRT(
    module="tensorrt",
    install="pip install tensorrt-cu13",
    releases=(
        Release("11.4", cuda="13", source="NVIDIA", is_checked=True),
        Release("10.16", cuda="13", source="NVIDIA", is_checked=True),
    ),
    architecture="x86_64",
    plugin="x86_64",
    compute_capabilities=(80,),
    is_ahead_of_time=False,
)

RTX = TensorRT(
    module="tensorrt_rtx",
    install="pip install 'tensorrt-rtx==1.7.1.*'",
    releases=(Release("1.7", cuda="13", source="PyPI", is_checked=True),),
    architecture="x86_64",
    plugin="x86_64",
    compute_capabilities=(80, 86, 89, 120),
    is_ahead_of_time=True,
)

CUDA_KERNELS = KernelLimits(
    most_experts=256,
    columns_multiple={"float": 16, "int8": 16, "int4": 32, "fp8": 16},
    outputs_multiple=2,
    head_multiple=8,
    most_head_width=128,
    most_latent=(576, 512),
)
"""Those of kernel.h in plugins/{attention,linear,sparse_moe}/cuda; a test compares them."""

_with_engines = functools.partial(
    Target,
    dtypes=("fp16", "bf16"),
    activation_dtypes=("float16", "bfloat16"),
    expert_formats=("float", "int8", "int4", "fp8"),
    dense_formats=("float", "int8", "int4"),
    vision_formats=("float",),
    linear_layout="logical",
    kernels=CUDA_KERNELS,
    # The parser of TensorRT 10.3 (JetPack 6.2) reads none after 20: norms and the tower's attention are spelled out.
    # There is no Conv of bfloat16 before 22.
    opsets=(20, 22),
    is_portable=False,
    backend="tensorrt",
)

JETPACK_7_STEP = (
    "copy {out} to the Jetson and build its engines there: fastmmoe build {out}. To try the model here, export with "
    "--target cpu"
)
LOADED_BY_JETPACK_7 = (
    "plugin loaded by TensorRT 10.16's lean library for aarch64, under qemu; built and run on the double of "
    "10.16.2.10; nothing ran on a device"
)
JETPACK_6_SUFFIX = "@jp6.2"


def _jetson(name: str, *devices: str, sm: int = 87, has_jetpack_6: bool = True) -> tuple[Target, ...]:
    """A module with JetPack 7.2, and with JetPack 6.2 as a target of its own."""
    tensorrt = replace(JETPACK_7, compute_capabilities=(sm,))
    newest = _with_engines(
        name=name, devices=devices, tensorrt=tensorrt, checked=LOADED_BY_JETPACK_7, next_step=JETPACK_7_STEP
    )
    older = replace(
        newest,
        name=f"{name}{JETPACK_6_SUFFIX}",
        tensorrt=JETPACK_6,
        checked="operators and opset are in the list of TensorRT 10.3's parser; built and run on the double of 10.3.0; "
        "no TensorRT 10.3 has seen plugin or graphs",
    )
    return (newest, older) if has_jetpack_6 else (newest,)


def _data_center(name: str, sm: int, *devices: str) -> Target:
    """A GPU of a server, x86-64, whose engines TensorRT builds on the machine that has it."""
    return _with_engines(
        name=name,
        devices=devices,
        tensorrt=replace(DATA_CENTER, compute_capabilities=(sm,)),
        checked="plugin loaded by TensorRT's lean libraries 10.16 and 11.4; built and run on the double of 11.4.0.106; "
        "no real TensorRT has built an engine",
        next_step="there are no engines in {out} yet: TensorRT builds them for the GPU that it finds. On the machine "
        f"with the {name.upper()}: fastmmoe build {{out}}",
    )


_ENTRIES = (
    Target(
        name="cpu",
        dtypes=("fp32", "fp16", "bf16"),
        activation_dtypes=("float32", "float32", "float32"),
        expert_formats=("float", "int8", "int4", "fp8"),
        tile_formats=("bf16", "int8", "int4"),
        dense_formats=("float", "bf16", "int8", "int4"),
        vision_formats=("float", "bf16", "int8"),
        linear_layout="tiles",
        kernels=None,
        opsets=(23, 23, 23),
        is_portable=True,
        backend="onnxruntime",
        devices=(),
        tensorrt=None,
        checked="everything, on x86-64; the demo model on aarch64 under qemu",
        next_step="run it: fastmmoe run {out} --image a.png --prompt '...'",
    ),
    *_jetson("jetson-orin-nano", "orin-nano-4gb", "orin-nano-8gb"),
    *_jetson("jetson-orin-nx", "orin-nx-8gb", "orin-nx-16gb"),
    *_jetson("jetson-agx-orin", "agx-orin-32gb", "agx-orin-64gb"),
    *_jetson("jetson-thor", "thor-t5000", sm=110, has_jetpack_6=False),
    _data_center("a100", 80, "a100-sxm-40gb", "a100-sxm-80gb"),
    _data_center("l4", 89, "l4"),
    _data_center("l40s", 89, "l40s"),
    _data_center("h100", 90, "h100-sxm"),
    _data_center("h200", 90, "h200-sxm"),
    _data_center("b200", 100, "b200"),
    _with_engines(
        name="rtx",
        devices=("rtx-3090", "rtx-4090", "rtx-5090"),
        tensorrt=RTX,
        checked="TensorRT-RTX 1.7.1 builds engines of whole models, without a GPU; built and run on its double; no "
        "engine ran on a GPU",
        next_step="the engines are there: fastmmoe run {out} --image a.png --prompt '...'; to build them with "
        "other limits: fastmmoe build {out}",
    ),
)

TARGETS: dict[str, Target] = {target.name: target for target in _ENTRIES}
"""By the name that a manifest has."""

JETPACK_7_SUFFIX = "@jp7.2"
"""May follow the name of a Jetson, which means the same without it."""

ALIASES: dict[str, str] = {
    "jetson-orin": "jetson-agx-orin",
    f"jetson-orin{JETPACK_6_SUFFIX}": f"jetson-agx-orin{JETPACK_6_SUFFIX}",
}
ALIASES |= {
    f"{name}{JETPACK_7_SUFFIX}": ALIASES.get(name, name)
    for name in (*TARGETS, *ALIASES)
    if name.startswith("jetson-") and "@" not in name
}
"""Other names that a user or a manifest may say -> that of `TARGETS`."""


def target_names() -> list[str]:
    """All that `find_target` knows."""
    return [*TARGETS, *ALIASES]


def find_target(name: str) -> Target | None:
    """The target of that name, or None."""
    return TARGETS.get(ALIASES.get(name, name))


def unknown_target(name: str) -> str:
    """What an error says of a target that is not there."""
    return f"{name!r}: this fastmmoe has {', '.join(TARGETS)}{did_you_mean(name, target_names())}"
