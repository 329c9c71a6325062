"""The server returns the results of `Eve`, to many clients at a time."""

import base64
import io
import json
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image
from tyro.conf import Positional

from eve_vl.config import HELD_OUT, InputConfig
from eve_vl.eve import Eve
from eve_vl.predict.requests import Images, Prompts, Request, ShownImage, Texts
from eve_vl.serve.computing_thread import ComputingThread, Job
from eve_vl.serve.endpoints import Endpoint
from eve_vl.serve.limits import Limits
from eve_vl.serve.refusals import RequestRefusedError
from eve_vl.serve.request_body import parse_body
from eve_vl.serve.service import Service
from eve_vl.systems.medical.phantoms.generator import NO_MEDICINE
from eve_vl.utils.errors import UserError
from helpers.serving import (  # noqa: F401
    CALLS,
    ONE,
    SHOWN,
    TWO,
    VQA,
    png,
    sent,
    served_client,
    served_folder,
    served_index,
    served_runs,
    service_of,
    serving,
    text_of,
)
from helpers.tiny_runs import TEXTS, tiny_run


def plain(value: Any) -> Any:
    """What a call returns, as nested lists and objects."""
    if hasattr(value, "__dataclass_fields__"):
        return {name: plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, np.ndarray):
        return value.tolist()
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value


def assert_same(found: Any, expected: Any) -> None:
    """Equal but for the last digits of numbers."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name in expected:
            assert_same(found[name], expected[name])
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert found == (
            pytest.approx(expected, rel=1e-4, abs=1e-6) if isinstance(expected, float) else expected
        )


@pytest.mark.parametrize(
    ("run", "call", "given"), CALLS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_call_gives_what_python_gives(client, runs, run, call, given):
    answer = client.post(
        f"/v1/runs/{run}/{call}", json={name: sent(value) for name, value in given.items()}
    )
    assert answer.status_code == 200, answer.text
    assert_same(answer.json()["result"], plain(getattr(runs[run], call)(**given)))


@pytest.mark.parametrize(
    ("run", "call", "given"), SHOWN, ids=lambda value: value if isinstance(value, str) else ""
)
def test_images_come_as_png(client, runs, run, call, given):
    found = client.post(
        f"/v1/runs/{run}/{call}", json={name: sent(value) for name, value in given.items()}
    ).json()["result"]
    expected = getattr(runs[run], call)(**given)
    if call == "explain":
        assert_same(
            [found["score"], found["probability"], found["grids"]],
            plain([expected.score, expected.probability, expected.grids]),
        )
        pairs = list(zip(found["images"], expected.overlays(), strict=True))
    else:
        pairs = [
            (found[name], getattr(expected, name))
            for name in ("original", "masked", "reconstructed")
        ]
    for written, pixels in pairs:
        difference = (
            np.asarray(Image.open(io.BytesIO(base64.b64decode(written)))).astype(int) - pixels
        )
        assert abs(difference).max() <= 1  # the last digit of a heat


def test_runs_on_phantoms_say_that_they_are_no_medicine(folder, monkeypatch):
    (folder / "written").mkdir()
    (folder / "written" / "PHANTOMS.txt").touch()
    sources = {
        "drawn": ("phantoms:train", "phantoms:val"),
        "table": (str(folder / "written" / "train.json"), HELD_OUT),
        "validated": (str(folder / "photos"), str(folder / "written" / "train" / "images")),
        "others": (str(folder / "photos"), HELD_OUT),
    }
    monkeypatch.chdir(folder / "written")  # where "held-out" is no folder
    runs = []
    for name, (train, val) in sources.items():
        run = tiny_run("vqa", Path(name))
        data = replace(run.config.data, train=(train,), val=(val,))
        runs.append(Eve(replace(run, config=replace(run.config, data=data))))
    with serving(*runs) as client:
        notes = {
            about["name"]: about.get("note") for about in client.get("/v1/runs").json()["runs"]
        }
    assert notes == dict.fromkeys(sources, NO_MEDICINE) | {"others": None}


def test_every_call_of_every_run_is_served_and_shown(client, runs):
    paths = client.get("/openapi.json").json()["paths"]
    for about in client.get("/v1/runs").json()["runs"]:
        eve = runs[about["name"]]
        assert about["calls"] == list(eve.calls)
        for call in eve.calls:
            shown = paths[f"/v1/runs/{about['name']}/{call}"]["post"]
            assert shown["description"].startswith(
                (getattr(eve, call).__doc__ or "").split("\n")[0]
            )
            schema = shown["requestBody"]["content"]["application/json"]["schema"]
            assert not {"batch_size", "progress"} & {*schema["properties"]}
    tried = {(run, call) for run, call, _ in CALLS + SHOWN}
    assert {
        (run, call) for run, eve in runs.items() for call in eve.predictor.offered()
    } - tried == {("retrieval", "explain")}


def test_openapi_tells_what_else_may_come(client, runs):
    """Errors as they are, 400 where FastAPI would say 422, and how to send the token if there is one."""
    with serving(runs["vqa"], token="sesame") as guarded:
        shown = guarded.get("/openapi.json", headers={"authorization": "Bearer sesame"}).json()
    for schema in (shown, client.get("/openapi.json").json()):
        for path, methods in schema["paths"].items():
            for about in methods.values():
                is_open = path == "/healthz"
                assert ({"400", "401", "413", "415", "503"} <= {*about["responses"]}) == (
                    not is_open
                )
                assert "422" not in about["responses"]
                assert ("security" in about) == (schema is shown and not is_open)
    assert "text/plain" in shown["paths"]["/metrics"]["get"]["responses"]["200"]["content"]
    assert [each["scheme"] for each in shown["components"]["securitySchemes"].values()] == [
        "bearer"
    ]


def test_a_request_is_computed_so_many_at_a_time_as_the_server_was_told(runs, monkeypatch):
    sizes, predict = [], runs["vqa"].task.predict

    def watched(batch: Any) -> Any:
        sizes.append(len(batch.ids_BT))
        return predict(batch)

    monkeypatch.setattr(runs["vqa"].task, "predict", watched)
    with serving(runs["vqa"], limits=Limits(batch=2)) as client:
        client.post(VQA, json={"image": [text_of(ONE)] * 5, "question": "what"})
    assert sizes == [2, 2, 1]


def test_the_body_follows_from_the_fields_of_any_request():
    class Anything(Request):
        """Do something."""

        images: Positional[Images]
        """Pictures, in a list."""
        names: Texts
        image: ShownImage | None = None
        table: Prompts = ""
        size: int = 3
        how: Literal["a", "b"] = "a"
        places: tuple[int, ...] | None = None
        pairs: Mapping[str, str] | None = None
        flag: bool = False
        rate: float | None = None

    endpoint = Endpoint(
        request=Anything,
        call=lambda **_: None,
        limits=Limits(items=2),
        sizes=InputConfig(image_size=16, patch_size=16),
        by_rows=False,
    )
    body = {
        "images": ["x", "y"],
        "names": "z",
        "image": "w",
        "table": {"a": ["b"]},
        "pairs": {"a": "b"},
        "places": [1],
        "rate": 1,
    }
    given = parse_body(endpoint.model, json.dumps(body).encode())
    assert given == body | {"rate": 1.0, "size": 3, "how": "a", "flag": False}
    for name, wrong in (("images", ["x"] * 3), ("names", [1]), ("size", 1.5), ("size", True), ("size", 2**63), ("how", "c"),
                        ("table", {"a": 1}), ("table", "/etc/passwd"), ("pairs", {"a": 1}), ("flag", 1), ("places", "x"),
                        ("batch_size", 3)):  # fmt: skip
        with pytest.raises(RequestRefusedError, match=name):
            parse_body(endpoint.model, json.dumps(body | {name: wrong}).encode())
    schema = endpoint.model.model_json_schema()
    assert schema["required"] == ["images", "names"]
    images = schema["properties"]["images"]
    assert images["description"] == "Pictures, in a list."
    one, several = images["anyOf"]
    assert one["description"] == "An image file as base64 text."
    assert (several["type"], several["maxItems"]) == ("array", 2)


def test_the_page_gets_the_form_of_each_call(client):
    forms = {
        name: form
        for about in client.get("/v1/runs").json()["runs"]
        for name, form in about["forms"].items()
    }
    assert {*forms} == {"answer", "verify", "same", "classify", "match", "zero_shot", "fill_mask"}
    assert forms["verify"] == {
        "title": "Verify",
        "fields": [
            {
                "name": "left",
                "label": "Left image",
                "kind": "image",
                "required": True,
                "example": "",
            },
            {
                "name": "right",
                "label": "Right image",
                "kind": "image",
                "required": True,
                "example": "",
            },
            {
                "name": "statement",
                "label": "Statement about the two images",
                "kind": "text",
                "required": True,
                "example": "both images show the same thing",
            },
        ],
    }


# Together


def test_jobs_that_ask_for_the_same_become_one_batch():
    sizes, calls = [], []

    def double(given: list[float]) -> list[float]:
        calls.append(given)
        if {13, 0.5} & {*given}:
            raise UserError("13") if 13 in given else ZeroDivisionError
        return [2 * each for each in given]

    compute = ComputingThread(4, lambda rows, _: sizes.append(rows))
    keys = ["a", "b", "a", None, "a", "b", None, "a", "a"]
    jobs = [Job(compute=double, arguments=number, key=key) for number, key in enumerate(keys)]
    bad = [
        Job(compute=double, arguments=given, key=key)
        for key, given in (("c", 13), ("c", 14), ("d", 0.5), ("d", 15))
    ]
    for job in [*jobs, *bad]:
        compute.submit(job)
    jobs[4].result.cancel()  # its client has gone
    compute.start()
    compute.end()
    compute.join()
    assert calls[:5] == [[0, 2, 7, 8], [1, 5], [3], [6], [13, 14]]
    assert [job.result.result() for job in jobs if job is not jobs[4]] == [
        0,
        2,
        4,
        6,
        10,
        12,
        14,
        16,
    ]
    assert calls[5:] == [[13], [14], [0.5, 15], [0.5], [15]]
    assert (bad[1].result.result(), bad[3].result.result()) == (
        28,
        30,
    )  # the other of the batch does not suffer
    for job, error in ((bad[0], UserError), (bad[2], ZeroDivisionError)):
        with pytest.raises(error):
            job.result.result()
    assert sizes == [4, 2, 1, 1, 2, 2]


def test_clients_are_answered_from_one_batch(runs):
    """Requests that arrive during a computation form one batch; each gets its own result."""
    with serving(runs["vqa"], limits=Limits()) as client:
        service, go = service_of(client), threading.Event()
        service.compute.submit(Job(compute=lambda given: [go.wait(60)], arguments=None))
        bodies = [
            {"image": text_of(png(number)), "question": TEXTS[number % 3], "top": 2} if number % 2
            else {"image": [text_of(png(number)), text_of(png(50))], "question": TEXTS[number % 3], "top": 2}
            for number in range(6)
        ] + [{"image": text_of(ONE), "question": "", "top": 2}]  # fmt: skip
        answers: list[Any] = [None] * len(bodies)

        def ask(number: int) -> None:
            answers[number] = client.post("/v1/runs/vqa/answer", json=bodies[number])

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(bodies))]
        for thread in threads:
            thread.start()
        while len(service.compute) < len(bodies):
            time.sleep(0.01)
        go.set()
        for thread in threads:
            thread.join()
        service.compute.end()
        service.compute.join()  # a batch is counted after its answers are given
        metrics = client.get("/metrics").text
    assert answers[-1].status_code == 400
    assert answers[-1].json() == {"error": "text is empty"}
    for body, answer in zip(bodies[:-1], answers[:-1], strict=True):
        image = (
            [base64.b64decode(each) for each in body["image"]]
            if isinstance(body["image"], list)
            else base64.b64decode(body["image"])
        )
        assert_same(
            answer.json()["result"], plain(runs["vqa"].answer(image, body["question"], top=2))
        )
    assert 'eve_requests_total{call="/v1/runs/vqa/answer",status="200"} 6.0' in metrics
    assert "eve_batch_rows_sum 11.0" in metrics  # 1, and 3 of one row, 3 of two, 1 with a mistake
    assert "eve_batch_rows_count 2.0" in metrics


def test_what_waits_is_counted_at_its_size(runs):
    served = Service([runs["vqa"]], None, Limits()).endpoints["vqa"]
    question = {"question": "what " * 1000}
    for given, size in (
        ({"image": text_of(ONE)}, 3 * 16 * 16),  # the run's square
        ({"image": [text_of(ONE), text_of(TWO)]}, 2 * 3 * 16 * 16),
    ):
        body = json.dumps(given | question).encode()
        rest = len(body) - sum(
            map(len, given["image"] if isinstance(given["image"], list) else [given["image"]])
        )
        assert served["answer"].prepare(body).num_bytes == size + rest
    body = json.dumps({"image": text_of(png(1, 700, 350)), "text": "what"}).encode()
    assert (
        0 <= served["explain"].prepare(body).num_bytes - 3 * 512 * 256 < 100
    )  # what is shown is no larger than that


# Search


def test_search_gives_what_the_index_gives(client, index, folder):
    for given in (
        {"query": "a red circle", "top": 3},
        {"image": ONE, "captions": True},
        {"query": "red -blue"},
    ):
        hits = index.search(**given)
        found = client.post(
            "/v1/search", json={name: sent(value) for name, value in given.items()}
        ).json()["hits"]
        assert [hit["id"] for hit in found] == [hit.id for hit in hits]
        assert_same([hit["score"] for hit in found], [hit.score for hit in hits])
        names = [hit.name.removeprefix(f"{folder}/") for hit in hits]
        assert [hit["name"].removeprefix(f"{folder.name}/") for hit in found] == names
    several = client.post("/v1/search", json={"query": ["red", "blue"], "top": 2}).json()
    assert [[hit["id"] for hit in each["hits"]] for each in several] == [
        [hit.id for hit in index.search(words, top=2)] for words in ("red", "blue")
    ]
    assert client.post("/v1/search", json={"query": []}).json() == []
    inside = client.post("/v1/search", json={"query": "red", "folder": "photos/new"}).json()["hits"]
    assert {hit["name"] for hit in inside} == {"photos/new/04.png", "photos/new/05.png"}
    about = client.get("/v1/runs").json()["index"]
    assert (about["images"], about["run"], about["text_queries"], about["captions_searchable"]) == (
        7,
        "retrieval",
        True,
        True,
    )
    assert about["examples"] == index.examples()
    assert sorted(about["examples"]) == sorted(
        {hit.name for hit in index.search("red", captions=True)}
    )


def test_no_more_is_ranked_again_than_may_be_asked_for(client, index, monkeypatch):
    """Though validation chose more for the run. Rows that cannot be ranked again may stand beside others."""
    assert index.encoder.run.config.task.rerank > 2
    assert index.most_reranked == 100
    monkeypatch.setattr(index, "most_reranked", 2)
    ranks = lambda hits: [(hit["id"], hit["match"] is not None) for hit in hits]  # noqa: E731
    hits = client.post("/v1/search", json={"query": "red", "top": 5}).json()["hits"]
    assert ranks(hits) == [
        (hit.id, hit.match is not None) for hit in index.search("red", top=5, rerank=2)
    ]
    assert [is_ranked for _, is_ranked in ranks(hits)] == [True, True, False, False, False]
    body = {"query": ["", "red"], "image": [text_of(ONE)] * 2, "captions": True, "top": 3}
    rows = client.post("/v1/search", json=body).json()
    expected = [
        index.search(image=ONE, captions=True, top=3, rerank=2),
        index.search("red", image=ONE, captions=True, top=3),
    ]
    assert [ranks(row["hits"]) for row in rows] == [
        [(hit.id, hit.match is not None) for hit in hits] for hits in expected
    ]


def test_images_of_the_index_come_as_thumbnails(client, index):
    for hit in index.search("red", top=7):  # one of them lies in a shard
        for path, cached in (
            (hit.id, "no-cache"),
            (f"{hit.id}/{index.digests([hit.id])[hit.id]}", "private, max-age=300"),
        ):
            answer = client.get(f"/v1/images/{path}?size=16")
            image = Image.open(io.BytesIO(answer.content))
            assert (image.format, image.size, answer.headers["cache-control"]) == (
                "JPEG",
                (16, 11),
                cached,
            )
            assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    for path, status in (
        ("99", 404),
        ("-1", 404),
        (str(2**70), 404),
        ("x", 400),
        ("1?size=15", 400),
        ("1?size=1025", 400),
    ):
        assert client.get(f"/v1/images/{path}").status_code == status
    with serving(index.encoder) as bare:
        assert [
            bare.get("/v1/images/1").status_code,
            bare.post("/v1/search", json={}).status_code,
        ] == [404, 404]
        assert bare.get("/v1/runs").json()["index"] is None


def test_a_image_that_has_got_the_number_of_another_has_another_address(runs, tmp_path):
    """Or browsers, which keep what an address has given, would show the other."""
    (tmp_path / "photos").mkdir()
    for number, name in enumerate(("a.png", "b.png")):
        (tmp_path / "photos" / name).write_bytes(png(number))
    index = runs["retrieval"].index(tmp_path / "photos", tmp_path / "index")
    with serving(index.encoder, index=index) as client:

        def found():
            return max(
                client.post("/v1/search", json={"query": "red"}).json()["hits"],
                key=lambda hit: hit["name"],
            )

        before = found()
        (tmp_path / "photos" / "b.png").unlink()
        runs["retrieval"].index((), tmp_path / "index")
        (tmp_path / "photos" / "c.png").write_bytes(png(2))
        runs["retrieval"].index((), tmp_path / "index")
        after = found()
        assert (before["id"], before["image"] != after["image"]) == (after["id"], True)
        answers = [client.get(hit["image"]) for hit in (before, after)]
    assert [answer.status_code for answer in answers] == [404, 200]
    assert answers[0].json() == {
        "error": f"image {before['id']} is another one by now; search again"
    }
