"""The server keeps its limits, and no client learns or names a path."""

import asyncio
import contextlib
import json
import logging
import sqlite3
import tarfile
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from fastapi import Request
from fastapi.testclient import TestClient

from eve_vl.search.index import Index
from eve_vl.search.index_files import DATABASE
from eve_vl.serve.admission import AdmissionMiddleware
from eve_vl.serve.application import application
from eve_vl.serve.computing_thread import Job
from eve_vl.serve.limits import DECODERS, MB, Limits
from eve_vl.serve.metrics import Metrics
from eve_vl.serve.public_names import distinct, without_paths
from eve_vl.serve.refusals import RequestRefusedError
from eve_vl.serve.request_body import read_body
from eve_vl.serve.reservations import Reservations
from eve_vl.serve.server import settings
from eve_vl.utils.errors import BadSampleError
from helpers.serving import (  # noqa: F401
    BOMB,
    JSON,
    ONE,
    VQA,
    bomb,
    png,
    served_client,
    served_folder,
    served_index,
    served_runs,
    service_of,
    serving,
    silent,
    text_of,
)

HALF, JUDGE = bomb(5000), "/v1/runs/nlvr2/verify"  # one of them would be accepted
ZERO_SHOT, MATCH = (f"/v1/runs/retrieval/{call}" for call in ("zero_shot", "match"))
TEXTS_64 = [str(number) for number in range(64)]
PROMPTS = dict.fromkeys(TEXTS_64, TEXTS_64)
TOGETHER = "have 50,000,000 pixels together, at most 32,000,000 are accepted in a request; send fewer, or smaller ones"
BAD: dict[str, tuple[str, Any, int, str]] = {
    "no JSON": (VQA, b"{", 400, "the body: invalid JSON"),
    "nothing": (VQA, b"", 400, "the body: invalid JSON"),
    "a list": (VQA, [], 400, "the body: input should be an object"),
    "not UTF-8": (VQA, b'{"question": "\xff"}', 400, "the body: invalid JSON"),
    "NaN": ("/v1/runs/masked/reconstruct", b'{"image": "x", "text": "a", "share": NaN}', 400, "share"),
    "infinity": ("/v1/runs/masked/reconstruct", b'{"image": "x", "text": "a", "share": 1e999}', 400, "share"),
    "deep": (VQA, b"[" * 40_000, 400, "recursion"),
    "many values": (VQA, b'{"question": [' + b"[]," * 50_000 + b"1]}", 400, "more than 50,000 commas"),
    "digits": (VQA, b'{"top": ' + b"9" * 5000 + b"}", 400, "the body: invalid JSON"),
    "huge": (VQA, {"image": text_of(ONE), "question": "a", "top": 2**63}, 400, "top: input should be less than"),
    "half a pair": (VQA, b'{"question": "\\ud800"}', 400, "the body: invalid JSON"),
    "lacks": (VQA, {"image": text_of(ONE)}, 400, "question: field required"),
    "unknown argument": (VQA, {"image": text_of(ONE), "question": "a", "tpo": 1}, 400, "did you mean 'top'?"),
    "a number for an image": (VQA, {"image": 5, "question": "a"}, 400, "image: input should be a valid string"),
    "a number in a list": (VQA, {"image": "a", "question": ["a", 5]}, 400, "question 1: input should be a valid"),
    "too long a text": (VQA, {"image": text_of(ONE), "question": "a" * 10_001}, 400, "question: string should have"),
    "too long a value": ("/v1/search", {"query": "a", "where": {"a": "b" * 10_001}}, 400, "where: string should have"),
    "not base64": (VQA, {"image": "ä", "question": "a"}, 400, "image: is not base64"),
    "not an image": (VQA, {"image": text_of(b"hello"), "question": "a"}, 400, "image: not an image in a known format"),
    "a PPM": (VQA, {"image": text_of(b"P6 1 1 255 abc"), "question": "a"}, 400, "known format (JPEG, PNG, WEBP, GIF, AVIF)"),
    "half an image": (VQA, {"image": text_of(ONE[: len(ONE) // 2]), "question": "a"}, 400, "image"),
    "a bomb": (VQA, {"image": text_of(BOMB), "question": "a"}, 400, "image: has 9000×9000 pixels, at most 32,000,000"),
    "two bombs": (VQA, {"image": [text_of(HALF)] * 2, "question": "a"}, 400, f"2 images {TOGETHER}"),
    "left and right": (JUDGE, {"left": text_of(HALF), "right": text_of(HALF), "statement": "a"}, 400, f"2 images {TOGETHER}"),
    "too many": (VQA, {"image": [text_of(ONE)] * 65, "question": "a"}, 400, "image: list should have"),
    "unequal lists": (VQA, {"image": [text_of(ONE)] * 2, "question": ["a"] * 3}, 400, "lists of 2 and 3"),
    "a negative seed": ("/v1/runs/masked/reconstruct", {"image": text_of(ONE), "text": "a", "seed": -1}, 400, "seed -1"),
    "top 0": (VQA, {"image": text_of(ONE), "question": "a", "top": 0}, 400, "top 0 is not positive"),
    "unknown run": ("/v1/runs/vq/answer", {}, 404, "'vq'; did you mean 'vqa'?"),
    "unknown call": ("/v1/runs/vqa/answers", {}, 404, "the run vqa has no call 'answers'; did you mean 'answer'?"),
    "not its call": ("/v1/runs/vqa/verify", {}, 404, "the run vqa has no call 'verify'; choose from answer"),
    "unknown column": ("/v1/search", {"query": "red", "where": {"x": "y"}}, 400, "no column 'x'"),
    "unknown folder": ("/v1/search", {"query": "red", "folder": "photo"}, 400, "did you mean 'photos'?"),
    "dots": ("/v1/search", {"query": "red", "folder": "photos/../.."}, 400, "'photos/../..' has . or .. in it"),
    "too many hits": ("/v1/search", {"query": "red", "top": 1001}, 400, "less than or equal to 1000 (1001 given)"),
    "too many hits of all": ("/v1/search", {"query": ["red"] * 3, "top": 1000}, 400, "top: 3 × 1000 results are asked for"),
    "too many to rank again": ("/v1/search", {"query": ["red"] * 64, "rerank": 100}, 400, "rerank: 64 × 100 results are asked"),
    "too many prompts": (ZERO_SHOT, {"image": text_of(ONE), "prompts": PROMPTS}, 400, "prompts: 1 × 4096 results are asked"),
    "too many pairs": (MATCH, {"image": [text_of(ONE)] * 64, "text": TEXTS_64}, 400, "lists: 4096 × 1 results are asked for"),
    "nothing asked": ("/v1/search", {}, 400, "nothing to search for"),
}  # fmt: skip


@pytest.mark.parametrize(("path", "body", "status", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line(client, folder, path, body, status, message):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = client.post(path, content=content, headers=JSON)
    assert (answer.status_code, list(answer.json())) == (status, ["error"])
    assert message in answer.json()["error"]
    assert "\n" not in answer.json()["error"]
    assert str(folder) not in answer.text


def test_a_text_is_never_a_path(client, folder):
    """Not of an image, which base64 could spell; not of a file of prompts."""
    (folder / "photos" / "aaaa").write_bytes(ONE)
    (folder / "prompts.json").write_text('{"a": ["b"], "c": ["d"]}')
    for name in (str(folder / "photos" / "aaaa"), "aaaa"):
        with contextlib.chdir(folder / "photos"):
            answers = [
                client.post("/v1/runs/vqa/encode_image", json={"images": name}),
                client.post("/v1/runs/vqa/explain", json={"image": name, "text": "a"}),
                client.post("/v1/search", json={"image": name}),
            ]
        assert [answer.status_code for answer in answers] == [400] * 3
    prompts = client.post(
        "/v1/runs/retrieval/zero_shot",
        json={"image": text_of(ONE), "prompts": str(folder / "prompts.json")},
    )
    assert (prompts.status_code, "prompts: input should be an object" in prompts.text) == (
        400,
        True,
    )
    texts = client.post(
        "/v1/runs/vqa/encode_text", json={"texts": str(folder / "photos" / "old" / "00.txt")}
    ).json()["result"]
    assert np.shape(texts)[0] == 1  # of the words of the path itself
    assert (
        client.post(
            "/v1/runs/vqa/encode_image", json={"images": "data:image/png;base64," + text_of(ONE)}
        ).status_code
        == 200
    )


def test_messages_keep_the_servers_paths(client, index, folder, caplog):
    assert (
        without_paths("/a/b/run: lacks /x/y z.png (/a/b/c)", {"/a/b": "b"})
        == "b/run: lacks y z.png (b/c)"
    )
    assert without_paths("a red/blue 1/2 ~/x/y and /", {}) == "a red/blue 1/2 y and /"
    assert without_paths(
        "a run in . of /srv/my photos/x y.jpg, /a/bc, and b/c/d",
        {"a": "A", ".": "index", "/a/b": "b", "b/c": "B"},
    ) == ("a run in . of x y.jpg, bc, and B/d")
    assert distinct(["a", "b", "a", "a"]) == ["a", "b", "a-2", "a-3"]
    image = next(hit for hit in index.search("red", top=7) if "05.png" in hit.name)
    (folder / "photos" / "new" / "05.png").rename(folder / "gone.png")
    answer = client.get(f"/v1/images/{image.id}")
    (folder / "gone.png").rename(folder / "photos" / "new" / "05.png")
    assert (answer.status_code, answer.json()) == (
        404,
        {"error": f"image {image.id} cannot be shown; the server's log says why"},
    )
    assert f"{folder}/photos/new/05.png" in caplog.text
    for path in ("/v1/runs", "/openapi.json", "/metrics"):
        assert str(folder) not in client.get(path).text


def test_bodies_have_a_size_a_type_and_an_end(client, runs):
    large = b" " * (16 * MB + 1)
    assert client.post(VQA, content=large, headers=JSON).status_code == 413
    assert (
        client.post(VQA, content=iter([large]), headers=JSON).status_code == 413
    )  # of which the size is not announced
    assert (
        client.post(VQA, content=b"{}", headers={"content-type": "text/plain"}).status_code == 415
    )
    assert client.get(VQA).status_code == 405

    async def never() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    room = Reservations(Limits(body_seconds=0.01))

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": await anext(chunks), "more_body": True}

    async def read() -> None:
        with room.reserve() as place:
            try:
                await read_body(Request({"type": "http", "headers": []}, receive), place)
            finally:
                assert (room.num_requests, room.num_bytes) == (1, 1)

    chunks = never()
    with pytest.raises(RequestRefusedError, match=r"incomplete after 0.01 s") as refused:
        asyncio.run(read())
    assert (refused.value.status, room.num_requests, room.num_bytes) == (408, 0, 0)


def test_there_is_only_so_much_room(runs):
    body = {"image": text_of(ONE), "question": "what"}
    with serving(runs["vqa"], limits=Limits(wait_seconds=0.05, queue=2, memory_mb=1)) as client:
        service, go = service_of(client), threading.Event()
        room = service.reservations
        room.num_requests = 2
        answers = [client.post(VQA, json=body)]
        room.num_requests, room.num_bytes = 0, MB
        answers.append(client.post(VQA, json=body))
        room.num_bytes = 0
        service.compute.submit(Job(compute=lambda given: [go.wait(60)], arguments=None))
        answers.append(client.post(VQA, json=body))
        assert len(service.compute) == 0  # nor are its images kept for a turn that does not come
        go.set()
        full = "requests wait already"
        for answer, why in zip(
            answers, (full, "too many large requests", "has waited for 0.05 s"), strict=True
        ):
            assert (
                answer.status_code,
                why in answer.json()["error"],
                answer.headers["retry-after"] > "0",
            ) == (503, True, True)
        assert (room.num_requests, room.num_bytes) == (0, 0)


def test_images_are_decoded_on_so_many_threads_and_others_wait(runs, monkeypatch):
    go, body = (
        threading.Event(),
        {"image": [text_of(ONE)], "question": "what"},
    )  # a list: decoded on a thread
    with serving(runs["vqa"], limits=Limits(wait_seconds=0.5)) as client:
        service = service_of(client)
        prepare = service.endpoints["vqa"]["answer"].prepare
        monkeypatch.setattr(
            service.endpoints["vqa"]["answer"],
            "prepare",
            lambda body: go.wait(60) and prepare(body),
        )
        answers: list[Any] = []
        threads = [
            threading.Thread(target=lambda: answers.append(client.post(VQA, json=body)))
            for _ in range(DECODERS + 1)
        ]
        for thread in threads:
            thread.start()
        while not answers:
            time.sleep(0.01)
        assert client.get("/healthz").status_code == 200
        assert (service.reservations.num_requests, service.decoders.borrowed_tokens) == (
            DECODERS,
            DECODERS,
        )
        go.set()
        for thread in threads:
            thread.join()
        assert (service.reservations.num_requests, service.reservations.num_bytes) == (0, 0)
    assert answers[0].status_code == 503
    assert "the request has waited for 0.5 s" in answers[0].text


def test_images_are_never_decoded_by_the_thread_of_the_connections(runs, monkeypatch):
    """However small the body; texts do not wait for a turn to decode."""
    with serving(runs["vqa"]) as client:
        threads, calls = [], service_of(client).endpoints["vqa"]
        for name in ("encode_image", "encode_text"):
            prepare = calls[name].prepare
            monkeypatch.setattr(
                calls[name],
                "prepare",
                lambda body, do=prepare: threads.append(threading.get_ident()) or do(body),
            )
        monkeypatch.setattr(calls["encode_image"], "by_rows", False)
        body = '{"im\\u0061ges": "' + text_of(ONE) + '"}'
        answers = [client.post("/v1/runs/vqa/encode_text", json={"texts": "a"}) for _ in range(2)]
        answers += [client.post("/v1/runs/vqa/encode_image", content=body, headers=JSON)]
    assert [answer.status_code for answer in answers] == [200] * 3
    assert threads[0] == threads[1] != threads[2]


def test_a_request_is_read_to_its_end_before_it_is_refused():
    """To close a connection before would lose the answer."""
    room, events = Reservations(Limits()), []

    async def receive() -> dict[str, Any]:
        events.append("part")
        return {"type": "http.request", "body": b"a" * 1000, "more_body": events.count("part") < 5}

    async def send(message: Any) -> None:
        events.append(message.get("status", "body"))

    scope = {"type": "http", "path": "/", "headers": [(b"host", b"localhost")]}
    asyncio.run(AdmissionMiddleware(silent, Metrics(room), 20.0, "token", ())(scope, receive, send))
    assert events == ["part"] * 5 + [401, "body"]


def test_the_page_is_sent_whole(runs):
    with serving(runs["vqa"], with_page=True) as client:
        for part in ("bytes=5-1", "--5", "bytes=0-3"):
            answer = client.get("/", headers={"range": part})
            assert (answer.status_code, answer.content) == (200, client.get("/").content)
        settings(client.app)  # pyright: ignore[reportArgumentType]
    record = logging.LogRecord(
        "uvicorn.error", 30, "", 0, "No supported WebSocket library detected.", None, None
    )
    assert not logging.getLogger("uvicorn.error").filter(record)


def test_images_of_a_disk_that_hangs_stop_nothing_else(index, monkeypatch):
    go, hangs, answers = threading.Event(), threading.Event(), []

    def image(_: int) -> None:
        hangs.set()
        go.wait(60)
        raise BadSampleError("image", "hung")

    monkeypatch.setattr(index, "image", image)
    with serving(index.encoder, index=index, limits=Limits(wait_seconds=0.3)) as client:
        first = threading.Thread(target=lambda: answers.append(client.get("/v1/images/1")))
        first.start()
        assert hangs.wait(60)
        assert client.post("/v1/search", json={"query": "red", "rerank": 0}).status_code == 200
        second = client.get("/v1/images/1")  # waits behind it
        assert (second.status_code, "has waited for 0.3 s" in second.json()["error"]) == (503, True)
        go.set()
        first.join()
    assert answers[0].status_code == 404


def test_as_many_pixels_as_are_accepted_are_taken(runs):
    with serving(runs["nlvr2"], limits=Limits(pixels=2 * 20 * 30)) as client:
        body, one = {"right": text_of(ONE), "statement": "red"}, text_of(ONE)
        answers = [client.post(JUDGE, json={"left": left, **body}) for left in (one, [one, one])]
    assert [answer.status_code for answer in answers] == [200, 400]
    assert (
        answers[1].json()["error"].startswith("3 images have 1,800 pixels together, at most 1,200")
    )


def test_a_thread_that_computes_no_more_is_no_health(runs):
    def leave(_: Any) -> list[Any]:
        raise SystemExit

    with serving(runs["vqa"]) as client:
        compute = service_of(client).compute
        job = Job(compute=leave, arguments=None)
        compute.submit(job)
        with pytest.raises(
            RuntimeError, match="SystemExit"
        ):  # as an error of its own, for the loop would end with it
            job.result.result(60)
        assert client.get("/healthz").json() == {"status": "ok"}
        compute.end()
        compute.join()
        answer = client.get("/healthz")
    assert (answer.status_code, answer.json()) == (503, {"status": "failed"})


def test_an_index_that_is_being_written_is_busy(index):
    """What searches says so at once, for the thread that computes belongs to all."""
    with (
        serving(index.encoder, index=index) as client,
        contextlib.closing(sqlite3.connect(index.database.folder / DATABASE)) as other,
    ):
        other.execute("BEGIN EXCLUSIVE")
        started = time.monotonic()
        answer = client.post("/v1/search", json={"query": "red"})
        assert time.monotonic() - started < 3  # SQLite would wait for 5 s
        other.rollback()
        assert client.post("/v1/search", json={"query": "red"}).status_code == 200
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.json() == {"error": "the index is being written; send it again in 1 s"}


@pytest.mark.parametrize("error", [ZeroDivisionError, TimeoutError])
def test_a_fault_of_the_server_is_no_traceback_for_clients(runs, monkeypatch, error):
    def predict(batch: Any) -> None:
        raise error

    app = application([runs["vqa"]])
    monkeypatch.setattr(runs["vqa"].task, "predict", predict)
    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as client:
        answer = client.post(VQA, json={"image": text_of(ONE), "question": "what"})
    assert (answer.status_code, answer.json()) == (
        500,
        {"error": "the server failed at this request; its log says why"},
    )


def test_a_damaged_index_is_the_servers_fault(folder, runs, caplog):
    """Not its client's, and nothing to try again."""
    for damage, why in (("images.f16", "lacks features"), (DATABASE, "not a database")):
        place = folder / f"damaged {damage}"
        runs["retrieval"].index(folder / "photos", place)
        index = Index.open(place, runs["retrieval"])
        with serving(index.encoder, index=index) as client:
            (place / damage).write_bytes(bytes(10_000) if damage == DATABASE else b"")
            answer = client.post("/v1/search", json={"query": "red"})
        assert (answer.status_code, answer.json()) == (
            500,
            {"error": "the server failed at this request; its log says why"},
        )
        assert f"{place / damage}" in caplog.text
        assert why in caplog.text


def test_an_index_that_has_changed_is_looked_at_again(folder, runs):
    """By page and search: another process has brought another source into it."""
    runs["retrieval"].index(folder / "photos" / "old", folder / "grows")
    index = Index.open(folder / "grows", runs["retrieval"])
    queries: list[str] = []
    index.database.db.set_trace_callback(queries.append)
    with serving(index.encoder, index=index) as client:
        about = lambda: client.get("/v1/runs").json()["index"]  # noqa: E731
        assert (about()["images"], about()["folders"]) == (4, ["old"])
        assert (
            sum("count(*) FROM text" in query for query in queries) == 1
        )  # for two who load the page
        assert not any("json_each(caption.columns)" in query for query in queries), (
            "columns are stored, not searched for"
        )
        runs["retrieval"].index(folder / "photos" / "new", folder / "grows")
        assert (about()["images"], about()["folders"]) == (6, ["old", "new"])
        hits = client.post("/v1/search", json={"query": "red", "folder": "new"}).json()["hits"]
        assert {hit["name"] for hit in hits} == {"new/04.png", "new/05.png"}


def test_folders_are_those_that_images_lie_in(runs, tmp_path):
    """Wherever the table of them lies, and however several shards are named."""
    for name, seeds in (("pics/a", (1,)), ("pics/b", (2, 3))):
        (tmp_path / name).mkdir(parents=True)
        for seed in seeds:
            (tmp_path / name / f"{seed}.png").write_bytes(png(seed))
    (tmp_path / "tables").mkdir()
    rows = [{"image": f"{path}.png", "caption": "red"} for path in ("a/1", "b/2", "b/3")]
    (tmp_path / "tables" / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for number in range(2):
        (tmp_path / f"d{number}").mkdir()
        with tarfile.open(tmp_path / f"d{number}" / "x.tar", "w") as tar:
            tar.add(tmp_path / "pics" / "a" / "1.png", "1.png")
    table = runs["retrieval"].index(
        tmp_path / "tables" / "t.jsonl", tmp_path / "one", image_root=tmp_path / "pics"
    )
    shards = runs["retrieval"].index(str(tmp_path / "d{0..1}" / "x.tar"), tmp_path / "two")
    for index, label, names in (
        (table, "pics", {"pics/a/1.png", "pics/b/2.png", "pics/b/3.png"}),
        (shards, tmp_path.name, {f"{tmp_path.name}/d0/x.tar:1"}),
    ):
        with serving(index.encoder, index=index) as client:
            assert client.get("/v1/runs").json()["index"]["folders"] == [label]
            hits = client.post("/v1/search", json={"query": "red", "folder": label}).json()["hits"]
            assert {hit["name"] for hit in hits} == names


def test_a_token_opens_the_rest(runs):
    with serving(runs["vqa"], token="sesame", with_page=True) as client:
        given = {"authorization": "Bearer sesame"}
        for path in ("/v1/runs", "/metrics", "/openapi.json", "/other"):
            assert client.get(path).status_code == 401
            assert client.get(path, headers={"authorization": "Bearer sesamE"}).status_code == 401
            assert client.get(path, headers=given).status_code == (404 if path == "/other" else 200)
        assert (
            client.get("/v1/runs", headers={"authorization": "bearer sesame"}).status_code == 200
        )  # RFC 9110: in any case
        assert client.get("/v1/runs", headers={"authorization": "Basic sesame"}).status_code == 401
        assert client.get("/healthz").json() == {"status": "ok"}
        assert client.head("/healthz").status_code == 200
        assert client.get("/").text.startswith("<!doctype html>")
        assert client.get("/v1/runs", headers=given | {"host": "example.org"}).status_code == 200
    with serving(
        runs["vqa"]
    ) as client:  # or else a page from elsewhere could have its own name mean this machine
        assert [
            client.get("/v1/runs", headers={"host": host}).status_code
            for host in (
                "localhost:1",
                "LocalHost",
                "[::1]:1",
                "127.0.0.2:1",
                "example.org",
                "127.0.0.1.example.org",
            )
        ] == [*(200, 200, 200, 200, 400, 400)]
