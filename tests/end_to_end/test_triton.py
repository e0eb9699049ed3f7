# SPDX-License-Identifier: Apache-2.0
"""The model.py that `fastmmoe triton` writes, run as Triton's Python backend runs it, on a stand-in for its module."""

from __future__ import annotations

import base64
import io
import json
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fastmmoe.runtime.cli.main import main
from fastmmoe.runtime.vlm import VLM
from tests.end_to_end.conftest import SMALL
from tests.support import triton_utils
from tests.support.messages import question
from tests.support.triton_utils import Request, request

CONFIG = {
    "parameters": {
        name: {"string_value": value} for name, value in (("bundle", ""), ("provider", "auto"), ("threads", "1"))
    }
}
PARSE = """
import sys
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2
print(text_format.MessageToString(text_format.Parse(open(sys.argv[1]).read(), model_config_pb2.ModelConfig())))
"""


@pytest.fixture(scope="module")
def repository(bundle: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the model's configuration and version 1."""
    out = tmp_path_factory.mktemp("triton")
    assert main(["triton", str(bundle(SMALL)), str(out), "--max-batch", "4"]) == 0
    return out / "models" / "fastmmoe"


@pytest.fixture(scope="module")
def served(repository: Path, bundle: Callable[..., Path]) -> Iterator[Any]:
    """A TritonPythonModel that is running."""
    CONFIG["parameters"]["bundle"]["string_value"] = str(bundle(SMALL))
    arguments = {"model_config": json.dumps(CONFIG), "model_instance_kind": "CPU", "model_instance_device_id": "0"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "triton_python_backend_utils", triton_utils.module())
        model = runpy.run_path(str(repository / "1" / "model.py"))["TritonPythonModel"]()
        model.initialize(arguments)
        yield model
        model.finalize()


@pytest.fixture(scope="module")
def pictures(golden: Path) -> list[Path]:
    """Two pictures of different sizes."""
    return [golden / "dsvl2-inputs" / f"{name}.png" for name in ("img2_300x260", "img1_420x980")]


def texts(asked: Request) -> str:
    assert asked.sender.is_closed
    return "".join(response.plain()["text"] for response in asked.sender.responses)


def test_answers_are_those_of_the_bundle(served: Any, pictures: list[Path], vlm: Callable[..., VLM]) -> None:
    """Four requests in one batch: streamed or whole, with one picture, two or none, and other options."""
    options = json.dumps({"max_new_tokens": 5, "retention": 0.25})
    whole = base64.b64encode(pictures[1].read_bytes())
    asked = [
        request("What is this?", pictures[0].read_bytes(), options=options),
        request("And these?", pictures[0].read_bytes(), b"data:image/png;base64," + whole, options=options),
        request("Hello", options=options, stream=False),
        request("What is this?", pictures[0].read_bytes(), options='{"max_new_tokens": 3}'),
    ]
    served.execute(asked)
    for one, images, text, more in (
        (asked[0], pictures[:1], "What is this?", {"max_new_tokens": 5, "retention": 0.25}),
        (asked[1], pictures, "And these?", {"max_new_tokens": 5, "retention": 0.25}),
        (asked[2], [], "Hello", {"max_new_tokens": 5, "retention": 0.25}),
        (asked[3], pictures[:1], "What is this?", {"max_new_tokens": 3}),
    ):
        answer = vlm(SMALL).generate(question(text, *images), **more)
        assert texts(one) == answer.text
        responses = [response.plain() for response in one.sender.responses]
        assert responses[-1]["finish_reason"] == answer.finish_reason
        assert json.loads(responses[-1]["stats"])["visual_tokens"] == answer.stats.visual_tokens
        if one is asked[2]:
            assert len(responses) == 1
        else:
            assert tuple(response["token_id"] for response in responses) == answer.token_ids
            assert {response["finish_reason"] for response in responses[:-1]} <= {""}


def test_those_with_the_same_options_share_a_prefill(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = served.server._vlm
    groups: list[int] = []
    start = model.start

    def counted(inputs: Any, *others: Any) -> Any:
        groups.append(len(inputs))
        return start(inputs, *others)

    monkeypatch.setattr(model, "start", counted)
    options = '{"max_new_tokens": 2}'
    served.execute([*(request(text, options=options) for text in ("a", "b", "c")), request("d")])
    assert groups == [3, 1]


def test_a_client_that_goes_away_stops_its_answer_alone(served: Any) -> None:
    options = '{"max_new_tokens": 8}'
    gone, stays = request("Hi", options=options, cancels_after=2), request("Hi", options=options)
    served.execute([gone, stays])
    assert gone.sender.is_closed and stays.sender.is_closed
    assert len(gone.sender.responses) <= 4 and len(stays.sender.responses) == 8
    gone.sender = triton_utils.Sender(cancels_after=2)
    served.execute([gone])
    assert gone.sender.is_closed and len(gone.sender.responses) <= 4


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (request("a", options='{"retention": 2}'), "retention 2: expected a number in (0, 1]"),
        (request("a", options="{"), "options: no JSON: "),
        (request("a", options="[1]"), "options: expected a JSON object of request options"),
        (request("a", options='{"deadline": 3}'), "options: deadline is of the server's own clock"),
        (request("a", b"nothing"), "image: 7 bytes that no picture begins with"),
        (request("a", b"\x89PNG\r\n\x1a\n"), "image: 8 bytes that no picture begins with"),
    ],
)
def test_a_bad_request_is_refused_and_the_others_answered(asked: Request, message: str, served: Any) -> None:
    good = request("Hello", options='{"max_new_tokens": 2}')
    served.execute([asked, good])
    (response,) = asked.sender.responses
    assert response.error is not None and response.error.message().startswith(message)
    assert asked.sender.is_closed and good.sender.is_closed and len(good.sender.responses) == 2


def test_a_batch_in_one_request_is_refused(served: Any) -> None:
    asked = request("a")
    asked.tensors["prompt"] = asked.tensors["prompt"].repeat(2, axis=0)
    served.execute([asked])
    (response,) = asked.sender.responses
    assert response.error.message() == "prompt has 2 rows: expected 1, one question a request"  # type: ignore[union-attr]


def test_pictures_of_every_kind_of_bytes(served: Any) -> None:
    file = io.BytesIO()
    Image.new("RGB", (20, 10), (200, 0, 0)).save(file, "JPEG")
    options = '{"max_new_tokens": 1}'
    plain, coded = (
        request("a", data, options=options) for data in (file.getvalue(), base64.b64encode(file.getvalue()))
    )
    served.execute([plain, coded])
    tokens = [one.sender.responses[0].plain()["token_id"] for one in (plain, coded)]
    assert tokens[0] == tokens[1]


@pytest.mark.slow
def test_the_published_protobuf_reads_the_configuration(repository: Path, tmp_path: Path) -> None:
    """That of the released tritonclient, in an environment of its own."""
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", "tritonclient[grpc]", "pyyaml"], check=True)
    command = [str(python), "-c", PARSE, str(repository / "config.pbtxt")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for line in ('name: "fastmmoe"', 'backend: "python"', "max_batch_size: 4", "decoupled: true", "kind: KIND_CPU"):
        assert line in done.stdout
    for name in ("kubernetes", "kserve"):
        load = "import sys, yaml; print([one['kind'] for one in yaml.safe_load_all(open(sys.argv[1]))])"
        file = repository.parents[1] / f"{name}.yaml"
        done = subprocess.run([str(python), "-c", load, str(file)], capture_output=True, text=True, check=False)
        kinds = {"kubernetes": "['Deployment', 'Service']", "kserve": "['InferenceService']"}
        assert done.stdout.strip() == kinds[name], done.stderr
