# SPDX-License-Identifier: Apache-2.0
"""Model repositories for Triton Inference Server: configuration, model.py, and what starts it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fastmmoe import __version__
from fastmmoe.runtime.backends.settings import AUTO
from fastmmoe.runtime.bundle.manifest import ENGINES, TOKENIZER, Manifest, read_engines
from fastmmoe.runtime.bundle.verification import open_bundle
from fastmmoe.runtime.errors import BundleMismatch, InvalidRequest
from fastmmoe.runtime.files import check_beside, real_path, write_atomically
from fastmmoe.runtime.interop.triton_server import (
    BUNDLE,
    FINISH_REASON,
    IMAGE,
    OPTIONS,
    PROMPT,
    PROVIDER,
    STATS,
    STREAM,
    TEXT,
    THREADS,
    TOKEN_ID,
)
from fastmmoe.runtime.machines.targets import find_target, unknown_target

IMAGE_NAME = "nvcr.io/nvidia/tritonserver:25.06-py3"
MODELS = "models"
DEFAULT_BATCH = 8

_MODEL = '''# SPDX-License-Identifier: Apache-2.0
"""Triton's Python backend runs this; what it does is in fastmmoe.runtime.interop.triton_server."""

import triton_python_backend_utils as pb_utils
from fastmmoe.runtime.interop.triton_server import Server


class TritonPythonModel:
    def initialize(self, args):
        self.server = Server.load(pb_utils, args)

    def execute(self, requests):
        self.server.execute(requests)

    def finalize(self):
        self.server.close()
'''

_CONFIG = """# {name}: {model}, by fastmmoe {version}.
name: {name_text}
backend: "python"
max_batch_size: {batch}
model_transaction_policy {{ decoupled: true }}
dynamic_batching {{ max_queue_delay_microseconds: {delay} }}
input [
{inputs}
]
output [
{outputs}
]
instance_group [ {{ count: {instances} kind: {kind} }} ]
{parameters}
"""
_INPUTS = {PROMPT: "TYPE_STRING", IMAGE: "TYPE_STRING", OPTIONS: "TYPE_STRING", STREAM: "TYPE_BOOL"}
_OUTPUTS = {TEXT: "TYPE_STRING", TOKEN_ID: "TYPE_INT32", FINISH_REASON: "TYPE_STRING", STATS: "TYPE_STRING"}

_POD = """containers:
- name: {container}
  image: {image}
  command: ["sh", "-c", {command}]
  ports:
  - {{containerPort: 8000{port_name}}}{other_ports}
  readinessProbe:
    httpGet: {{path: /v2/health/ready, port: 8000}}
    periodSeconds: 10
    failureThreshold: 60
  resources:
    limits: {limits}
  volumeMounts:
  - {{name: fastmmoe, mountPath: /{models}, subPath: {models}, readOnly: true}}
  - {{name: fastmmoe, mountPath: {bundle}, subPath: bundle, readOnly: true}}
  - {{name: shm, mountPath: /dev/shm}}
volumes:
- name: fastmmoe
  persistentVolumeClaim: {{claimName: fastmmoe}}
- name: shm
  emptyDir: {{medium: Memory, sizeLimit: 1Gi}}
"""

_KUBERNETES = """# The claim fastmmoe holds the folder {models} of this directory, and the bundle as the folder bundle.
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {name}
spec:
  replicas: {replicas}
  selector:
    matchLabels: {{app: {name}}}
  template:
    metadata:
      labels: {{app: {name}}}
    spec:
{pod}---
apiVersion: v1
kind: Service
metadata:
  name: {name}
spec:
  selector: {{app: {name}}}
  ports:
  - {{name: http, port: 8000}}
  - {{name: grpc, port: 8001}}
  - {{name: metrics, port: 8002}}
"""

_KSERVE = """# The claim fastmmoe holds the folder {models} of this directory, and the bundle as the folder bundle.
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata:
  name: {name}
spec:
  predictor:
    minReplicas: 1
    maxReplicas: {replicas}
{pod}"""


@dataclass(frozen=True)
class RepositoryOptions:
    """Choices of a repository.

    Attributes:
        name: of the model, and of what runs it in a cluster.
        instances: processes on a machine; each loads the bundle.
        max_batch: requests of one packed call; None = those of the engines, DEFAULT_BATCH without engines.
        queue_delay_us: microseconds that a request waits for others.
        bundle_path: where the server sees the bundle; None = where it is.
        provider, threads: of `VLM`.
        image: container image with tritonserver.
        replicas: machines of a cluster.
    """

    name: str = "fastmmoe"
    instances: int = 1
    max_batch: int | None = None
    queue_delay_us: int = 1000
    bundle_path: str | None = None
    provider: str = AUTO
    threads: int = 0
    image: str = IMAGE_NAME
    replicas: int = 2


@dataclass(frozen=True)
class Repository:
    """What was written, and the line that serves it on this machine."""

    models: Path
    config: Path
    kubernetes: Path
    kserve: Path
    launch: str


def write_repository(
    bundle: Path, out: Path, options: RepositoryOptions | None = None, *, verify: bool = True
) -> Repository:
    """Write a model repository for a bundle, which stays where it is, and examples for clusters.

    Args:
        out: directory; its files are replaced.
    Raises:
        InvalidRequest: a name that Kubernetes does not take, a number below 1, more sequences than the engines take, or
            see `check_beside`.
        BundleMismatch: see `open_bundle`, or the bundle has no tokenizer.
        WriteFailed: the disk is full, or the like.
    """
    options = RepositoryOptions() if options is None else options
    _check(options)
    check_beside(bundle, out)
    manifest = open_bundle(bundle, verify=verify).manifest
    target = find_target(manifest.target)
    if target is None:
        raise BundleMismatch(f"{bundle}: exported for {unknown_target(manifest.target)}")
    if TOKENIZER not in manifest.files:
        raise BundleMismatch(f"{bundle}: has no tokenizer, which prompts need: export with tokenizer.json")
    has_gpu = target.tensorrt is not None
    place = options.bundle_path or str(real_path(bundle))
    models = out / MODELS
    texts = {
        models / options.name / "config.pbtxt": _config(manifest, options, _max_batch(bundle, options, has_gpu), place),
        models / options.name / "1" / "model.py": _MODEL,
        out / "kubernetes.yaml": _cluster(_KUBERNETES, options, place, has_gpu),
        out / "kserve.yaml": _cluster(_KSERVE, options, place, has_gpu),
    }
    for path, text in texts.items():
        write_atomically(path, text.encode())
    config, _, kubernetes, kserve = texts
    return Repository(models, config, kubernetes, kserve, _launch(models, bundle, options, place, has_gpu))


def _check(options: RepositoryOptions) -> None:
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", options.name):
        raise InvalidRequest(f"--name {options.name}: expected up to 63 letters a-z, digits and dashes, a letter first")
    counts = {"--instances": options.instances, "--max-batch": options.max_batch, "--replicas": options.replicas}
    for option, count in counts.items():
        if count is not None and count < 1:
            raise InvalidRequest(f"{option} {count}: expected at least 1")
    if options.queue_delay_us < 0:
        raise InvalidRequest(f"--queue-delay-us {options.queue_delay_us}: expected 0 or more")
    if options.bundle_path is not None and not options.bundle_path.startswith("/"):
        raise InvalidRequest(f"--bundle-path {options.bundle_path}: expected an absolute path, as the server sees it")


def _max_batch(bundle: Path, options: RepositoryOptions, has_gpu: bool) -> int:
    engines = read_engines(bundle) if has_gpu else None
    if engines is None:
        return options.max_batch or DEFAULT_BATCH
    most = engines.limits.max_batch
    if options.max_batch is not None and options.max_batch > most:
        raise InvalidRequest(
            f"--max-batch {options.max_batch}: the engines of {bundle / ENGINES} take {most} sequences at once: build "
            f"them with fastmmoe build --max-batch {options.max_batch}"
        )
    return options.max_batch or most


def _config(manifest: Manifest, options: RepositoryOptions, batch: int, place: str) -> str:
    inputs = [_tensor(name, kind, is_optional=name != PROMPT, is_list=name == IMAGE) for name, kind in _INPUTS.items()]
    parameters = {BUNDLE: place, PROVIDER: options.provider, THREADS: str(options.threads)}
    target = find_target(manifest.target)
    return _CONFIG.format(
        name=options.name,
        model=re.sub(r"\s", " ", manifest.model),
        version=__version__,
        name_text=_quoted(options.name),
        batch=batch,
        delay=options.queue_delay_us,
        inputs=",\n".join(inputs),
        outputs=",\n".join(_tensor(name, kind) for name, kind in _OUTPUTS.items()),
        instances=options.instances,
        kind="KIND_CPU" if target is None or target.tensorrt is None else "KIND_GPU",
        parameters="\n".join(
            f"parameters {{ key: {_quoted(key)} value {{ string_value: {_quoted(value)} }} }}"
            for key, value in parameters.items()
        ),
    )


def _tensor(name: str, kind: str, *, is_optional: bool = False, is_list: bool = False) -> str:
    """A list has as many entries as the request gives; requests of other numbers may share a batch."""
    more = (" optional: true" if is_optional else "") + (" allow_ragged_batch: true" if is_list else "")
    return f"  {{ name: {_quoted(name)} data_type: {kind} dims: [ {-1 if is_list else 1} ]{more} }}"


def _quoted(text: str) -> str:
    """As protobuf's text format and YAML both read it."""
    return json.dumps(text, ensure_ascii=False)


def _serve(models: str, has_gpu: bool) -> str:
    """What runs in a container: Triton's image has no fastmmoe."""
    extra = "tensorrt" if has_gpu else "cpu"
    return f"pip install 'fastmmoe[{extra}]=={__version__}' && exec tritonserver --model-repository={models}"


def _launch(models: Path, bundle: Path, options: RepositoryOptions, place: str, has_gpu: bool) -> str:
    words = ["docker", "run", "--rm", *(["--gpus", "all"] if has_gpu else []), "--shm-size=1g"]
    words += [word for port in (8000, 8001, 8002) for word in ("-p", f"{port}:{port}")]
    words += ["-v", f"{real_path(models)}:/{MODELS}:ro", "-v", f"{real_path(bundle)}:{place}:ro"]
    return shlex.join([*words, options.image, "sh", "-c", _serve(f"/{MODELS}", has_gpu)])


def _cluster(template: str, options: RepositoryOptions, place: str, has_gpu: bool) -> str:
    is_kserve = template is _KSERVE
    pod = _POD.format(
        container="kserve-container" if is_kserve else options.name,
        image=_quoted(options.image),
        command=_quoted(_serve(f"/{MODELS}", has_gpu)),
        # KServe sends to the one port that there is.
        port_name=", name: http1, protocol: TCP" if is_kserve else "",
        other_ports="" if is_kserve else "\n  - {containerPort: 8001}\n  - {containerPort: 8002}",
        limits=_limits(has_gpu),
        models=MODELS,
        bundle=_quoted(place),
    )
    indented = "".join(" " * (4 if is_kserve else 6) + line for line in pod.splitlines(keepends=True))
    return template.format(name=options.name, replicas=options.replicas, models=MODELS, pod=indented)


def _limits(has_gpu: bool) -> str:
    limits: Mapping[str, int] = {"nvidia.com/gpu": 1} if has_gpu else {}
    return json.dumps(limits)
