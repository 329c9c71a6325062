"""The server keeps its limits of size, memory, threads and time."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from typing import Any

import pytest
from fastapi import Request

from eve_vl.serve.computing_thread import QueuedCall
from eve_vl.serve.limits import DECODERS, MB, Limits
from eve_vl.serve.refusals import RequestRefusedError
from eve_vl.serve.request_body import read_body
from eve_vl.serve.reservations import Reservations
from eve_vl.utils.errors import BadSampleError
from helpers.serving import JSON, ONE_TEXT, QUESTION, VQA, base64_text, png, service_of, serving


def test_large_bodies_and_other_types_are_refused(client):
    large = b" " * (16 * MB + 1)
    assert client.post(VQA, content=large, headers=JSON).status_code == 413
    # in parts, of which the size is not announced
    assert client.post(VQA, content=iter([large]), headers=JSON).status_code == 413
    text = {"content-type": "text/plain"}
    assert client.post(VQA, content=b"{}", headers=text).status_code == 415
    assert client.get(VQA).status_code == 405


def test_body_that_never_ends_is_refused():
    async def one_byte_and_silence() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    reservations = Reservations(Limits(body_seconds=0.01))
    chunks = one_byte_and_silence()

    async def receive() -> dict[str, Any]:
        return {
            "type": "http.request",
            "body": await anext(chunks),
            "more_body": True,
        }

    async def read() -> None:
        with reservations.reserve() as reservation:
            try:
                await read_body(Request({"type": "http", "headers": []}, receive), reservation)
            finally:
                assert (reservations.num_requests, reservations.num_bytes) == (1, 1)

    with pytest.raises(RequestRefusedError, match=r"incomplete after 0.01 s") as refusal:
        asyncio.run(read())
    assert refusal.value.status == 408
    assert (reservations.num_requests, reservations.num_bytes) == (0, 0)


def assert_busy(answer, reason: str) -> None:
    assert answer.status_code == 503
    assert reason in answer.json()["error"]
    assert int(answer.headers["retry-after"]) > 0


def test_full_queue_full_memory_and_a_long_wait_are_503(runs):
    limits = Limits(wait_seconds=0.05, queue=2, memory_mb=1)
    with serving(runs["vqa"], limits=limits) as client:
        service = service_of(client)
        reservations = service.reservations
        reservations.num_requests = 2
        assert_busy(client.post(VQA, json=QUESTION), "requests wait already")
        reservations.num_requests = 0
        reservations.num_bytes = MB
        assert_busy(client.post(VQA, json=QUESTION), "too many large requests")
        reservations.num_bytes = 0
        go = threading.Event()
        service.compute.submit(QueuedCall(compute=lambda _: [go.wait(60)], arguments=None))
        assert_busy(client.post(VQA, json=QUESTION), "has waited for 0.05 s")
        assert len(service.compute) == 0  # nor are its images kept for a turn that does not come
        go.set()
        assert (reservations.num_requests, reservations.num_bytes) == (0, 0)


def test_job_is_counted_at_the_size_of_its_decoded_images(runs):
    with serving(runs["vqa"]) as client:
        endpoints = service_of(client).endpoints["vqa"]
    for num_images in (1, 2):
        images = [ONE_TEXT] * num_images
        body = json.dumps({"image": images, "question": "what " * 1000}).encode()
        size = len(body) - num_images * len(ONE_TEXT) + num_images * 3 * 16 * 16
        assert endpoints["answer"].prepare(body).num_bytes == size
    body_text = json.dumps({"image": base64_text(png(1, 700, 350)), "text": "what"}).encode()
    largest = 3 * 512 * 256  # the longer side becomes 512
    assert 0 <= endpoints["explain"].prepare(body_text).num_bytes - largest < 100


def test_images_are_decoded_on_few_threads_and_others_wait(runs, monkeypatch):
    go = threading.Event()
    body = {"image": [ONE_TEXT], "question": "what"}  # a list is decoded on a thread
    with (
        serving(runs["vqa"], limits=Limits(wait_seconds=0.3)) as client,
        ThreadPoolExecutor(DECODERS + 1) as threads,
    ):
        service = service_of(client)
        endpoint = service.endpoints["vqa"]["answer"]
        prepare = endpoint.prepare

        def wait_and_prepare(body: bytes) -> QueuedCall:
            go.wait(60)
            return prepare(body)

        monkeypatch.setattr(endpoint, "prepare", wait_and_prepare)
        answers = [threads.submit(client.post, VQA, json=body) for _ in range(DECODERS + 1)]
        refused = next(as_completed(answers))
        assert_busy(refused.result(), "the request has waited for 0.3 s")
        assert client.get("/healthz").status_code == 200
        assert service.reservations.num_requests == DECODERS
        assert service.decoders.borrowed_tokens == DECODERS
        go.set()
        wait(answers)
        assert service.reservations.num_requests == service.reservations.num_bytes == 0


def test_images_are_never_decoded_by_the_thread_of_the_connections(runs, monkeypatch):
    """However small the body; texts do not wait for a turn to decode."""
    threads = []
    with serving(runs["vqa"]) as client:
        endpoints = service_of(client).endpoints["vqa"]
        for name in ("encode_image", "encode_text"):

            def note_and_prepare(body: bytes, prepare=endpoints[name].prepare) -> QueuedCall:
                threads.append(threading.get_ident())
                return prepare(body)

            monkeypatch.setattr(endpoints[name], "prepare", note_and_prepare)
        for _ in range(2):
            answer = client.post("/v1/runs/vqa/encode_text", json={"texts": "a"})
            assert answer.status_code == 200
        body = '{"im\\u0061ges": "' + ONE_TEXT + '"}'
        answer = client.post("/v1/runs/vqa/encode_image", content=body, headers=JSON)
        assert answer.status_code == 200
    assert threads[0] == threads[1] != threads[2]


def test_images_of_a_hanging_disk_stop_nothing_else(index, monkeypatch):
    go = threading.Event()
    hangs = threading.Event()

    def hang(_: int) -> None:
        hangs.set()
        go.wait(60)
        raise BadSampleError("image", "hung")

    monkeypatch.setattr(index, "image", hang)
    limits = Limits(wait_seconds=0.2)
    with serving(index.encoder, index=index, limits=limits) as client, ThreadPoolExecutor() as pool:
        first = pool.submit(client.get, "/v1/images/1")
        assert hangs.wait(60)
        answer = client.post("/v1/search", json={"query": "red", "rerank": 0})
        assert answer.status_code == 200
        assert_busy(client.get("/v1/images/1"), "has waited for 0.2 s")
        go.set()
        assert first.result().status_code == 404


@pytest.mark.parametrize("error", [ZeroDivisionError, TimeoutError])
def test_fault_of_the_server_is_no_traceback_for_clients(runs, monkeypatch, error):
    def fail(_: Any) -> None:
        raise error

    monkeypatch.setattr(runs["vqa"].task, "predict", fail)
    with serving(runs["vqa"]) as client:
        client._transport.raise_server_exceptions = False  # pyright: ignore
        answer = client.post(VQA, json=QUESTION)
    assert answer.status_code == 500
    assert answer.json() == {"error": "the server failed at this request; its log says why"}
