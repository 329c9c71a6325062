"""Bodies of requests: fields follow from the request class; bad input is one line."""

import itertools
import json
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import pytest
from tyro.conf import Positional

from eve_vl.config import InputConfig
from eve_vl.predict.request_fields import Images, Prompts, ShownImage, Texts
from eve_vl.predict.requests import Request
from eve_vl.serve.endpoints import Endpoint
from eve_vl.serve.limits import Limits
from eve_vl.serve.refusals import RequestRefusedError
from eve_vl.serve.request_body import parse_body
from helpers.serving import BOMB, JSON, ONE, ONE_TEXT, QUESTION, VQA, base64_text, bomb


class Anything(Request):
    """Do something."""

    images: Positional[Images]
    """Images, in a list."""
    names: Texts
    image: ShownImage | None = None
    table: Prompts = ""
    size: int = 3
    how: Literal["a", "b"] = "a"
    places: tuple[int, ...] | None = None
    pairs: Mapping[str, str] | None = None
    flag: bool = False
    rate: float | None = None


ANYTHING = Endpoint(
    request=Anything,
    call=lambda **_: None,
    limits=Limits(items=2),
    sizes=InputConfig(image_size=16, patch_size=16),
    by_rows=False,
)
BODY = {
    "images": ["x", "y"],
    "names": "z",
    "image": "w",
    "table": {"a": ["b"]},
    "pairs": {"a": "b"},
    "places": [1],
    "rate": 1,
}


def test_body_has_the_fields_of_the_request():
    values = parse_body(ANYTHING.model, json.dumps(BODY).encode())
    assert values == {
        **BODY,
        "rate": 1.0,
        "size": 3,
        "how": "a",
        "flag": False,
    }
    schema = ANYTHING.model.model_json_schema()
    assert schema["required"] == ["images", "names"]
    images = schema["properties"]["images"]
    assert images["description"] == "Images, in a list."
    image, list_of_images = images["anyOf"]
    assert image["description"] == "An image file as base64 text."
    assert (list_of_images["type"], list_of_images["maxItems"]) == ("array", 2)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("images", ["x"] * 3),
        ("size", 1.5),
        ("size", 2**63),
        ("how", "c"),
        ("table", {"a": 1}),
        ("flag", 1),
        ("places", "x"),
        ("batch_size", 3),
    ],
)
def test_wrong_value_is_refused_by_name(name, value):
    with pytest.raises(RequestRefusedError, match=name):
        parse_body(ANYTHING.model, json.dumps({**BODY, name: value}).encode())


HALF = base64_text(bomb(5000))  # one of them would be accepted
VERIFY = "/v1/runs/nlvr2/verify"
RECONSTRUCT = "/v1/runs/masked/reconstruct"
ZERO_SHOT = "/v1/runs/retrieval/zero_shot"
MATCH = "/v1/runs/retrieval/match"
SEARCH = "/v1/search"
TEXTS_64 = [str(number) for number in range(64)]
PROMPTS = dict.fromkeys(TEXTS_64, TEXTS_64)
IMAGES_64 = [ONE_TEXT] * 64
PIXELS = "2 images have 50,000,000 pixels together, at most 32,000,000 are accepted in a request"


def question(**changes: Any) -> dict[str, Any]:
    return {**QUESTION, **changes}


def with_file(data: bytes) -> dict[str, Any]:
    return question(image=base64_text(data))


BAD: list[tuple[str, bytes | list | dict[str, Any], str]] = [
    (VQA, b"{", "the body: invalid JSON"),
    (VQA, [], "the body: input should be an object"),
    (VQA, b'{"question": "\\ud800"}', "the body: invalid JSON"),
    (VQA, b'{"top": ' + b"9" * 5000 + b"}", "the body: invalid JSON"),
    (VQA, b"[" * 40_000, "recursion"),
    (VQA, b'{"question": [' + b"[]," * 50_000 + b"1]}", "more than 50,000 commas"),
    (RECONSTRUCT, b'{"image": "x", "text": "a", "share": NaN}', "share"),
    (VQA, question(top=2**63), "top: input should be less than"),
    (VQA, question(top=0), "top 0 is not positive"),
    (VQA, {"image": ONE_TEXT}, "question: field required"),
    (VQA, question(tpo=1), "did you mean 'top'?"),
    (VQA, question(image=5), "image: input should be a valid string"),
    (VQA, question(question="a" * 10_001), "question: string should have"),
    (VQA, question(image="ä"), "image: is not base64"),
    (VQA, with_file(b"hello"), "image: not an image in a known format"),
    (VQA, with_file(b"P6 1 1 255 abc"), "known format (JPEG, PNG, WEBP, GIF, AVIF)"),
    (VQA, with_file(BOMB), "image: has 9000×9000 pixels, at most 32,000,000"),
    (VQA, question(image=[HALF] * 2), f"{PIXELS}; send fewer, or smaller ones"),
    (VERIFY, {"left": HALF, "right": HALF, "statement": "a"}, PIXELS),
    (VQA, {"image": [ONE_TEXT] * 2, "question": ["a"] * 3}, "lists of 2 and 3"),
    (SEARCH, {}, "nothing to search for"),
    (SEARCH, {"query": "red", "folder": "photo"}, "did you mean 'photos'?"),
    (SEARCH, {"query": "red", "folder": "photos/../.."}, "'photos/../..' has . or .. in it"),
    (SEARCH, {"query": "red", "top": 1001}, "less than or equal to 1000 (1001 given)"),
    (SEARCH, {"query": ["red"] * 3, "top": 1000}, "top: 3 × 1000 results are asked for"),
    (ZERO_SHOT, {"image": ONE_TEXT, "prompts": PROMPTS}, "prompts: 1 × 4096 results are asked"),
    (MATCH, {"image": IMAGES_64, "text": TEXTS_64}, "lists: 4096 × 1 results are asked for"),
]
UNKNOWN = [
    ("/v1/runs/vq/answer", {}, "'vq'; did you mean 'vqa'?"),
    ("/v1/runs/vqa/answers", {}, "the run vqa has no call 'answers'; did you mean 'answer'?"),
    ("/v1/runs/vqa/verify", {}, "the run vqa has no call 'verify'; choose from answer"),
]


@pytest.mark.parametrize(
    ("path", "body", "message"),
    BAD + UNKNOWN,
    ids=itertools.count(),
)
def test_bad_input_is_one_line(client, folder, path, body, message):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = client.post(path, content=content, headers=JSON)
    assert answer.status_code == (404 if (path, body, message) in UNKNOWN else 400)
    ((name, error),) = answer.json().items()
    assert name == "error"
    assert message in error
    assert "\n" not in error
    assert str(folder) not in answer.text


def test_text_is_never_a_path(client, folder, monkeypatch):
    """Also if it could be base64: neither of an image, nor of prompts, nor of texts."""
    monkeypatch.chdir(folder / "photos")
    image = folder / "photos" / "aaaa"
    image.write_bytes(ONE)
    prompts = folder / "prompts.json"
    prompts.write_text('{"a": ["b"], "c": ["d"]}')
    bodies: list[tuple[str, dict[str, Any]]] = [
        (ZERO_SHOT, {"image": ONE_TEXT, "prompts": str(prompts)}),
    ]
    for name in (str(image), "aaaa"):
        bodies += [
            ("/v1/runs/vqa/encode_image", {"images": name}),
            ("/v1/runs/vqa/explain", {"image": name, "text": "a"}),
            (SEARCH, {"image": name}),
        ]
    for path, body in bodies:
        assert client.post(path, json=body).status_code == 400
    texts = {"texts": str(folder / "photos" / "old" / "00.txt")}
    features = client.post("/v1/runs/vqa/encode_text", json=texts).json()["result"]
    assert len(features) == 1  # of the words of the path itself


def test_image_may_be_a_data_url(client):
    body = {"images": f"data:image/png;base64,{ONE_TEXT}"}
    plain = client.post("/v1/runs/vqa/encode_image", json={"images": ONE_TEXT}).json()["result"]
    result = client.post("/v1/runs/vqa/encode_image", json=body).json()["result"]
    np.testing.assert_allclose(result, plain, atol=1e-5)
