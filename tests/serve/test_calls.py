"""The server returns the results of `Eve`."""

import base64
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from eve_vl.serve.limits import Limits
from helpers.serving import CALLS, IMAGE_CALLS, ONE_TEXT, VQA, Call, as_json, serving


def as_values(result: Any) -> Any:
    """Return the result of a call as nested lists and objects."""
    if hasattr(result, "__dataclass_fields__"):
        return {name: as_values(getattr(result, name)) for name in result.__dataclass_fields__}
    if isinstance(result, np.ndarray):
        return result.tolist()
    if isinstance(result, list | tuple):
        return [as_values(item) for item in result]
    return result


def assert_close(values: Any, expected: Any) -> None:
    """Equal but for the last digits of numbers."""
    if isinstance(expected, dict):
        assert values.keys() == expected.keys()
        for name in expected:
            assert_close(values[name], expected[name])
    elif isinstance(expected, list):
        assert len(values) == len(expected)
        for value, expected_value in zip(values, expected, strict=True):
            assert_close(value, expected_value)
    elif isinstance(expected, float):
        assert values == pytest.approx(expected, rel=1e-4, abs=1e-6)
    else:
        assert values == expected


def post(client, call: Call) -> Any:
    answer = client.post(call.path, json=as_json(call.arguments))
    assert answer.status_code == 200, answer.text
    return answer.json()["result"]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.path)
def test_call_returns_what_python_returns(client, runs, call):
    expected = getattr(runs[call.run], call.name)(**call.arguments)
    assert_close(post(client, call), as_values(expected))


@pytest.mark.parametrize("call", IMAGE_CALLS, ids=lambda call: call.path)
def test_images_are_png(client, runs, call):
    result = post(client, call)
    expected = getattr(runs[call.run], call.name)(**call.arguments)
    if call.name == "explain":
        for name in ("score", "probability", "grids"):
            assert_close(result[name], as_values(getattr(expected, name)))
        images = result["images"]
        expected_images = expected.overlays()
    else:
        names = ("original", "masked", "reconstructed")
        images = [result[name] for name in names]
        expected_images = [getattr(expected, name) for name in names]
    for text, pixels in zip(images, expected_images, strict=True):
        image = np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))
        assert abs(image.astype(int) - pixels).max() <= 1  # the last digit of a heat


def test_every_call_is_served_and_tried_here(client, runs):
    paths = client.get("/openapi.json").json()["paths"]
    for facts in client.get("/v1/runs").json()["runs"]:
        eve = runs[facts["name"]]
        assert facts["calls"] == list(eve.calls)
        for call in eve.calls:
            about = paths[f"/v1/runs/{facts['name']}/{call}"]["post"]
            doc = getattr(eve, call).__doc__
            assert about["description"].startswith(doc.split("\n")[0])
            schema = about["requestBody"]["content"]["application/json"]["schema"]
            assert not {"batch_size", "progress"} & {*schema["properties"]}
    tried = {(call.run, call.name) for call in CALLS + IMAGE_CALLS}
    offered = {(run, call) for run, eve in runs.items() for call in eve.predictor.offered()}
    assert offered - tried == {("retrieval", "explain")}


def test_request_is_computed_in_batches_of_the_limit(runs, monkeypatch):
    sizes = []
    predict = runs["vqa"].task.predict

    def predict_and_note(batch: Any) -> Any:
        sizes.append(len(batch.ids_BT))
        return predict(batch)

    monkeypatch.setattr(runs["vqa"].task, "predict", predict_and_note)
    with serving(runs["vqa"], limits=Limits(batch=2)) as client:
        client.post(VQA, json={"image": [ONE_TEXT] * 5, "question": "what"})
    assert sizes == [2, 2, 1]
