"""The server gives what `Eve` gives, to many at a time, and takes no more than it says; no client learns or names a path."""

import asyncio
import base64
import contextlib
import gc
import io
import json
import re
import resource
import signal
import socket
import sqlite3
import struct
import tarfile
import threading
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import uvicorn
from fastapi.testclient import TestClient
from PIL import Image
from tiny_runs import TEXTS, noise, tiny_run, write_run
from uvicorn.server import ServerState

from eve_vl.config import ClassificationConfig, PairConfig
from eve_vl.data.inputs import ImageLike, Images, Strings
from eve_vl.errors import BadSampleError, UserError
from eve_vl.eve import Eve
from eve_vl.search.index import Index
from eve_vl.search.store import DATABASE
from eve_vl.serve import app as app_module
from eve_vl.serve import gate as gate_module
from eve_vl.serve import server as server_module
from eve_vl.serve.app import Service, application
from eve_vl.serve.compute import Compute, Job
from eve_vl.serve.found import distinct, without_paths
from eve_vl.serve.gate import Hold, Traffic, in_pieces
from eve_vl.serve.limits import MB, Limits, RefusedError
from eve_vl.serve.server import MOST_AROUND, Protocol, Server, listening, settings
from eve_vl.serve.signatures import arguments, body_model, parsed

JSON = {"content-type": "application/json"}


def png(seed: int, height: int = 20, width: int = 30) -> bytes:
    file = io.BytesIO()
    Image.fromarray(noise(seed, height, width)).save(file, "PNG")
    return file.getvalue()


def text_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


ONE, TWO = png(1), png(2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Runs and pictures: some are files, some members of a shard."""
    folder = tmp_path_factory.mktemp("secret")
    write_run(tiny_run("retrieval"), folder / "runs" / "retrieval" / "best")
    for number in range(6):
        path = folder / "photos" / ("old" if number < 4 else "new") / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number))
        path.with_suffix(".txt").write_text(TEXTS[number % 3])
    with tarfile.open(folder / "shard.tar", "w") as tar:
        for name, data in (("a.png", png(100)), ("a.txt", b"a shard")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return folder


@pytest.fixture(scope="module")
def runs(folder) -> dict[str, Eve]:
    tasks = {"pair": PairConfig(), "classification": ClassificationConfig()}
    found = {"retrieval": Eve.load(folder / "runs" / "retrieval")}
    for name in ("masked", "vqa", "nlvr2"):
        found[name] = Eve(tiny_run(name, folder / "runs" / name))
    for name, task in tasks.items():
        found[name] = Eve(tiny_run(name, folder / "runs" / name, task=task))
    return found


@pytest.fixture(scope="module")
def index(folder, runs) -> Index:
    return runs["retrieval"].index([folder / "photos", folder / "shard.tar"], folder / "index")


@pytest.fixture(scope="module")
def client(runs, index) -> Iterator[TestClient]:
    with TestClient(application([*runs.values()], index), base_url="http://localhost") as client:
        yield client


@contextlib.contextmanager
def serving(*runs: Eve, **options: Any) -> Iterator[TestClient]:
    with TestClient(application(runs, **options), base_url="http://localhost") as client:
        yield client


def service_of(client: TestClient) -> Service:
    app: Any = client.app
    return app.state.service


def sent(values: Any) -> Any:
    """What a program writes for a Python value."""
    if isinstance(values, bytes):
        return text_of(values)
    return [sent(each) for each in values] if isinstance(values, list) else values


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
        assert found == (pytest.approx(expected, rel=1e-4, abs=1e-6) if isinstance(expected, float) else expected)


# Calls

CALLS: list[tuple[str, str, dict[str, Any]]] = [
    ("masked", "encode_image", {"images": [ONE, TWO]}),
    ("masked", "encode_text", {"texts": TEXTS[0]}),
    ("masked", "fill_mask", {"image": ONE, "text": ["a [MASK] circle", "two [MASK]"], "top": 2}),
    ("retrieval", "match", {"image": [ONE, TWO], "text": TEXTS[1]}),
    ("retrieval", "zero_shot", {"image": ONE, "prompts": {"a": ["a circle", "red"], "b": ["blue squares"]}, "by": "max"}),
    ("vqa", "answer", {"image": ONE, "question": "what color is it", "top": 3}),
    ("vqa", "answer", {"image": [ONE, TWO], "question": "what color is it"}),
    ("nlvr2", "judge", {"left": ONE, "right": [TWO, ONE], "statement": "a red circle"}),
    ("pair", "compare", {"left": ONE, "left_text": "a circle", "right": TWO, "right_text": "a square"}),
    ("classification", "classify", {"image": [ONE, TWO], "top": 1}),
]  # fmt: skip
SHOWN: list[tuple[str, str, dict[str, Any]]] = [
    ("masked", "reconstruct", {"image": ONE, "text": TEXTS[0], "keep": [0, 3, 5]}),
    ("masked", "look", {"image": ONE, "text": TEXTS[1], "word": "red"}),
    ("vqa", "look", {"image": ONE, "text": "what color is it", "answer": "red", "block": 0}),
    ("nlvr2", "look", {"image": [ONE, TWO], "text": "a red circle"}),
    ("classification", "look", {"image": ONE}),
]  # fmt: skip


@pytest.mark.parametrize(("run", "call", "given"), CALLS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_call_gives_what_python_gives(client, runs, run, call, given):
    answer = client.post(f"/v1/runs/{run}/{call}", json={name: sent(value) for name, value in given.items()})
    assert answer.status_code == 200, answer.text
    assert_same(answer.json()["result"], plain(getattr(runs[run], call)(**given)))


@pytest.mark.parametrize(("run", "call", "given"), SHOWN, ids=lambda value: value if isinstance(value, str) else "")
def test_pictures_come_as_png(client, runs, run, call, given):
    found = client.post(f"/v1/runs/{run}/{call}", json={name: sent(value) for name, value in given.items()}).json()["result"]
    expected = getattr(runs[run], call)(**given)
    if call == "look":
        assert_same(
            [found["score"], found["probability"], found["grids"]],
            plain([expected.score, expected.probability, expected.grids]),
        )
        pairs = list(zip(found["pictures"], expected.overlays(), strict=True))
    else:
        pairs = [(found[name], getattr(expected, name)) for name in ("original", "masked", "rebuilt")]
    for written, pixels in pairs:
        difference = np.asarray(Image.open(io.BytesIO(base64.b64decode(written)))).astype(int) - pixels
        assert abs(difference).max() <= 1  # the last digit of a heat


def test_every_call_of_every_run_is_served_and_shown(client, runs):
    paths = client.get("/openapi.json").json()["paths"]
    for about in client.get("/v1/runs").json()["runs"]:
        eve = runs[about["name"]]
        assert about["calls"] == list(eve.calls)
        for call in eve.calls:
            shown = paths[f"/v1/runs/{about['name']}/{call}"]["post"]
            assert shown["description"].startswith((getattr(eve, call).__doc__ or "").split("\n")[0])
            schema = shown["requestBody"]["content"]["application/json"]["schema"]
            assert not {"batch_size", "progress"} & {*schema["properties"]}
    tried = {(run, call) for run, call, _ in CALLS + SHOWN}
    assert {(run, call) for run, eve in runs.items() for call in eve._calls.offered()} - tried == {("retrieval", "look")}


def test_openapi_tells_what_else_may_come(client, runs):
    """Errors as they are, 400 where FastAPI would say 422, and how to send the token if there is one."""
    with serving(runs["vqa"], token="sesame") as guarded:
        shown = guarded.get("/openapi.json", headers={"authorization": "Bearer sesame"}).json()
    for schema in (shown, client.get("/openapi.json").json()):
        for path, methods in schema["paths"].items():
            for about in methods.values():
                is_open = path == "/healthz"
                assert ({"400", "401", "413", "415", "503"} <= {*about["responses"]}) == (not is_open)
                assert "422" not in about["responses"]
                assert ("security" in about) == (schema is shown and not is_open)
    assert [each["scheme"] for each in shown["components"]["securitySchemes"].values()] == ["bearer"]


def test_a_request_is_computed_so_many_at_a_time_as_the_server_was_told(runs, monkeypatch):
    sizes, predict = [], runs["vqa"].task.predict

    def watched(batch: Any) -> Any:
        sizes.append(len(batch.ids_BT))
        return predict(batch)

    monkeypatch.setattr(runs["vqa"].task, "predict", watched)
    with serving(runs["vqa"], limits=Limits(batch=2)) as client:
        client.post(VQA, json={"image": [text_of(ONE)] * 5, "question": "what"})
    assert sizes == [2, 2, 1]


def test_arguments_follow_from_the_signature_of_any_call():
    class Above:
        def call(self, image: ImageLike, *, rate: float | None = None, **options: Any) -> None: ...

    class Own(Above):  # the arguments of the call that it overrides, too
        def call(  # pyright: ignore[reportIncompatibleMethodOverride]
            self,
            images: Images,
            names: Strings,
            size: int = 3,
            how: Literal["a", "b"] = "a",
            file: str | Path = "x",
            table: Mapping[str, str] | None = None,
            places: Sequence[int] = (),
            flag: bool = False,
            raw: np.ndarray | None = None,
            batch_size: int = 64,
            **options: Any,
        ) -> None: ...

    def lost(model: str | Path) -> None: ...

    given = arguments(Own().call, Limits(items=2), {})
    assert given is not None
    assert {name: (each.kind, each.several) for name, each in given.items()} == {
        "images": ("square", True),
        "names": ("text", True),
        "image": ("whole", False),
        **dict.fromkeys(("size", "how", "table", "places", "flag", "rate"), ("value", False)),
    }
    assert arguments(lost, Limits(), {}) is None  # nothing but a path would do
    model = body_model("own", given)
    body = {"images": ["x", "y"], "names": "z", "image": "w", "table": {"a": "b"}, "places": [1], "rate": 1}
    assert parsed(model, given, json.dumps(body).encode())["rate"] == 1.0
    for name, wrong in (("images", ["x"] * 3), ("names", [1]), ("size", 1.5), ("size", True), ("size", 2**63), ("how", "c"),
                        ("table", {"a": 1}), ("flag", 1), ("file", "/etc/passwd"), ("places", "x")):  # fmt: skip
        with pytest.raises(RefusedError, match=name):
            parsed(model, given, json.dumps(body | {name: wrong}).encode())


# Together


def test_jobs_that_ask_for_the_same_become_one_batch():
    sizes, calls = [], []

    def double(given: list[float]) -> list[float]:
        calls.append(given)
        if {13, 0.5} & {*given}:
            raise UserError("13") if 13 in given else ZeroDivisionError
        return [2 * each for each in given]

    compute = Compute(Limits(batch=4), lambda rows, _: sizes.append(rows))
    keys = ["a", "b", "a", None, "a", "b", None, "a", "a"]
    jobs = [Job(compute=double, given=number, key=key) for number, key in enumerate(keys)]
    bad = [Job(compute=double, given=given, key=key) for key, given in (("c", 13), ("c", 14), ("d", 0.5), ("d", 15))]
    for job in [*jobs, *bad]:
        compute.submit(job)
    jobs[4].result.cancel()  # its client has gone
    compute.start()
    compute.end()
    compute.join()
    assert calls[:6] == [[0, 2, 7], [1, 5], [3], [6], [8], [13, 14]]
    assert [job.result.result() for job in jobs if job is not jobs[4]] == [0, 2, 4, 6, 10, 12, 14, 16]
    assert calls[6:] == [[13], [14], [0.5, 15], [0.5], [15]]
    assert (bad[1].result.result(), bad[3].result.result()) == (28, 30)  # the other of the batch does not suffer
    for job, error in ((bad[0], UserError), (bad[2], ZeroDivisionError)):
        with pytest.raises(error):
            job.result.result()
    assert sizes == [3, 2, 1, 1, 1, 2, 2]


def test_clients_are_answered_from_one_batch(runs):
    """Requests that come while another is computed wait, and then are one batch; each gets what it would alone."""
    with serving(runs["vqa"], limits=Limits()) as client:
        service, go = service_of(client), threading.Event()
        service.compute.submit(Job(compute=lambda given: [go.wait(60)], given=None))
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
        assert_same(answer.json()["result"], plain(runs["vqa"].answer(image, body["question"], top=2)))
    assert 'eve_requests_total{call="/v1/runs/vqa/answer",status="200"} 6.0' in metrics
    assert "eve_batch_rows_sum 11.0" in metrics  # 1, and 3 of one row, 3 of two, 1 with a mistake
    assert "eve_batch_rows_count 2.0" in metrics


def test_what_waits_is_counted_at_its_size(runs):
    served = Service([runs["vqa"]], None, Limits()).calls["vqa"]
    question = {"question": "what " * 1000}
    for given, size in (
        ({"image": text_of(ONE)}, 3 * 16 * 16),  # the run's square
        ({"image": [text_of(ONE), text_of(TWO)]}, 2 * 3 * 16 * 16),
    ):
        body = json.dumps(given | question).encode()
        rest = len(body) - sum(map(len, given["image"] if isinstance(given["image"], list) else [given["image"]]))
        assert served["answer"].prepare(body)[1] == size + rest
    body = json.dumps({"image": text_of(png(1, 700, 350)), "text": "what"}).encode()
    assert 0 <= served["look"].prepare(body)[1] - 3 * 512 * 256 < 100  # what is shown is no larger than that


# What is refused

BOMB = b"\x89PNG\r\n\x1a\n" + b"".join(
    struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    for kind, data in ((b"IHDR", struct.pack(">IIBBBBB", 9000, 9000, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(10))))
)
VQA = "/v1/runs/vqa/answer"
BAD: dict[str, tuple[str, Any, int, str]] = {
    "no JSON": (VQA, b"{", 400, "the body is no JSON object"),
    "nothing": (VQA, b"", 400, "the body is no JSON object"),
    "a list": (VQA, [], 400, "got a list of 0"),
    "not UTF-8": (VQA, b'{"question": "\xff"}', 400, "no JSON"),
    "NaN": ("/v1/runs/masked/reconstruct", b'{"image": "x", "text": "a", "share": NaN}', 400, "share"),
    "infinity": ("/v1/runs/masked/reconstruct", b'{"image": "x", "text": "a", "share": 1e999}', 400, "share"),
    "deep": (VQA, b"[" * 40_000, 400, "recursion"),
    "many values": (VQA, b'{"question": [' + b"[]," * 50_000 + b"1]}", 400, "more than 50,000 commas and brackets"),
    "digits": (VQA, b'{"top": ' + b"9" * 5000 + b"}", 400, "no JSON"),
    "huge": (VQA, {"image": text_of(ONE), "question": "a", "top": 2**63}, 400, "top: got 9223372036854775808, expected"),
    "half a pair": (VQA, b'{"question": "\\ud800"}', 400, "no JSON"),
    "lacks": (VQA, {"image": text_of(ONE)}, 400, "question is missing: expected a text"),
    "unknown argument": (VQA, {"image": text_of(ONE), "question": "a", "tpo": 1}, 400, "'tpo'; did you mean 'top'?"),
    "a number for a picture": (VQA, {"image": 5, "question": "a"}, 400, "image: got 5, expected a picture as base64"),
    "a number in a list": (VQA, {"image": "a", "question": ["a", 5]}, 400, "question 1: got 5"),
    "too long a text": (VQA, {"image": text_of(ONE), "question": "a" * 10_001}, 400, "question: got a text of 10,001 letters"),
    "not base64": (VQA, {"image": "ä", "question": "a"}, 400, "image: is not base64"),
    "not a picture": (VQA, {"image": text_of(b"hello"), "question": "a"}, 400, "image: not a picture in a known format"),
    "half a picture": (VQA, {"image": text_of(ONE[: len(ONE) // 2]), "question": "a"}, 400, "image"),
    "a bomb": (VQA, {"image": text_of(BOMB), "question": "a"}, 400, "image: has 9000×9000 pixels, at most 32,000,000"),
    "too many": (VQA, {"image": [text_of(ONE)] * 65, "question": "a"}, 400, "image: got a list of 65, expected"),
    "unequal lists": (VQA, {"image": [text_of(ONE)] * 2, "question": ["a"] * 3}, 400, "lists of 2 and 3"),
    "a negative seed": ("/v1/runs/masked/reconstruct", {"image": text_of(ONE), "text": "a", "seed": -1}, 400, "seed -1"),
    "top 0": (VQA, {"image": text_of(ONE), "question": "a", "top": 0}, 400, "top 0 is not positive"),
    "unknown run": ("/v1/runs/vq/answer", {}, 404, "'vq'; did you mean 'vqa'?"),
    "unknown call": ("/v1/runs/vqa/answers", {}, 404, "'answers'; did you mean 'answer'?"),
    "not its call": ("/v1/runs/vqa/judge", {}, 404, "no call 'judge'"),
    "unknown column": ("/v1/search", {"words": "red", "where": {"x": "y"}}, 400, "no column 'x'"),
    "unknown folder": ("/v1/search", {"words": "red", "folder": "photo"}, 400, "did you mean 'photos'?"),
    "dots": ("/v1/search", {"words": "red", "folder": "photos/../.."}, 400, "without . and .."),
    "too many hits": ("/v1/search", {"words": "red", "top": 1001}, 400, "from 1 to 1000"),
    "too many hits of all": ("/v1/search", {"words": ["red"] * 3, "top": 1000}, 400, "top: 3 × 1000 results are asked for"),
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
    """Not of a picture, which base64 could spell; not of a file of prompts."""
    (folder / "photos" / "aaaa").write_bytes(ONE)
    (folder / "prompts.json").write_text('{"a": ["b"], "c": ["d"]}')
    for name in (str(folder / "photos" / "aaaa"), "aaaa"):
        with contextlib.chdir(folder / "photos"):
            answers = [
                client.post("/v1/runs/vqa/encode_image", json={"images": name}),
                client.post("/v1/runs/vqa/look", json={"image": name, "text": "a"}),
                client.post("/v1/search", json={"image": name}),
            ]
        assert [answer.status_code for answer in answers] == [400] * 3
    prompts = client.post("/v1/runs/retrieval/zero_shot", json={"image": text_of(ONE), "prompts": str(folder / "prompts.json")})
    assert (prompts.status_code, "expected an object" in prompts.text) == (400, True)
    texts = client.post("/v1/runs/vqa/encode_text", json={"texts": str(folder / "photos" / "old" / "00.txt")}).json()["result"]
    assert np.shape(texts)[0] == 1  # of the words of the path itself
    assert client.post("/v1/runs/vqa/encode_image", json={"images": "data:image/png;base64," + text_of(ONE)}).status_code == 200


def test_messages_keep_the_servers_paths(client, index, folder, caplog):
    assert without_paths("/a/b/run: lacks /x/y z.png (/a/b/c)", {"/a/b": "b"}) == "b/run: lacks y z.png (b/c)"
    assert without_paths("a red/blue 1/2 ~/x/y and /", {}) == "a red/blue 1/2 y and /"
    assert without_paths(
        "a run in . of /srv/my photos/x y.jpg, /a/bc, and b/c/d", {"a": "A", ".": "index", "/a/b": "b", "b/c": "B"}
    ) == ("a run in . of x y.jpg, bc, and B/d")
    assert distinct(["a", "b", "a", "a"]) == ["a", "b", "a-2", "a-3"]
    picture = next(hit for hit in index.search("red", top=7) if "05.png" in hit.name)
    (folder / "photos" / "new" / "05.png").rename(folder / "gone.png")
    answer = client.get(f"/v1/pictures/{picture.id}")
    (folder / "gone.png").rename(folder / "photos" / "new" / "05.png")
    assert (answer.status_code, answer.json()) == (
        404,
        {"error": f"picture {picture.id} cannot be shown; the server's log says why"},
    )
    assert f"{folder}/photos/new/05.png" in caplog.text
    for path in ("/v1/runs", "/openapi.json", "/metrics"):
        assert str(folder) not in client.get(path).text


def test_bodies_have_a_size_a_type_and_an_end(client, runs):
    large = b" " * (16 * MB + 1)
    assert client.post(VQA, content=large, headers=JSON).status_code == 413
    assert client.post(VQA, content=iter([large]), headers=JSON).status_code == 413  # of which the size is not announced
    assert client.post(VQA, content=b"{}", headers={"content-type": "text/plain"}).status_code == 415
    assert client.get(VQA).status_code == 405

    async def never() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    hold = Hold(Traffic(Limits(body_seconds=0.01)))
    with pytest.raises(RefusedError, match=r"not there after 0.01 s") as refused:
        asyncio.run(hold.body(never(), None))
    assert (refused.value.status, hold.size) == (408, 1)
    hold.release()
    assert hold.traffic.held == 0


async def silent(scope: Any, receive: Any, send: Any) -> None:
    await asyncio.Event().wait()


HEAD = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n"


@pytest.mark.parametrize("start", [b"GET /", HEAD, HEAD + b"X: ", HEAD + b"\r\n0\r\n", HEAD + b"\r\n1\r\nx\r\n0\r\nX: "])
def test_what_is_around_a_body_has_an_end(start):
    """An address, headers or trailers, many or one, of which no end comes; a body of any length is none of these."""

    class Transport(asyncio.Transport):
        written = b""
        ends = False

        def is_closing(self) -> bool:
            return self.ends

        def write(self, data: Any) -> None:
            self.written += data

        def close(self) -> None:
            self.ends = True

        def pause_reading(self) -> None: ...

    async def talk(start: bytes, part: bytes) -> bytes:
        config = uvicorn.Config(silent, ws="none", interface="asgi3", log_config=None)
        protocol, transport = Protocol(config, ServerState(), {}), Transport()
        protocol.connection_made(transport)
        protocol.data_received(start)
        for _ in range(MOST_AROUND // len(part) + 1):
            if not transport.is_closing():
                protocol.data_received(part)
        return transport.written

    part = b"y" * 4000 if start.endswith((b"/", b" ")) else b"y: " + b"y" * 4000 + b"\r\n"
    assert asyncio.run(talk(start, part)).startswith(b"HTTP/1.1 400")
    assert asyncio.run(talk(HEAD + b"\r\n", b"fa0\r\n" + b"y" * 4000 + b"\r\n")) == b""


def test_there_is_only_so_much_room(runs, index):
    body = {"image": text_of(ONE), "question": "what"}
    with serving(runs["vqa"], index.encoder, index=index, limits=Limits(wait_seconds=0.05, queue=2, memory_mb=1)) as client:
        service, go = service_of(client), threading.Event()
        traffic = service.traffic
        traffic.accepted = 2
        answers = [client.post(VQA, json=body)]
        assert client.get("/v1/pictures/1").status_code == 200  # these have a queue of their own
        traffic.accepted, traffic.held = 0, MB
        answers.append(client.post(VQA, json=body))
        traffic.held = 0
        service.compute.submit(Job(compute=lambda given: [go.wait(60)], given=None))
        answers.append(client.post(VQA, json=body))
        assert len(service.compute) == 0  # nor are its pictures kept for a turn that does not come
        go.set()
        full = "requests wait already"
        for answer, why in zip(answers, (full, "too many large requests", "has waited for 0.05 s"), strict=True):
            assert (answer.status_code, why in answer.json()["error"], answer.headers["retry-after"] > "0") == (503, True, True)
        assert (traffic.active, traffic.accepted, traffic.held) == (0, 0, 0)


def test_answers_count_until_they_are_taken(runs, monkeypatch):
    """And are written on threads of their own, while others are answered."""
    sizes, threads = [100_000, MB + 1], []

    def written(*_: Any) -> bytes:
        threads.append(threading.current_thread().name)
        return bytes(sizes[len(threads) - 1])

    monkeypatch.setattr(app_module, "_written", written)
    seen = []
    with serving(runs["vqa"], limits=Limits(memory_mb=1)) as client:
        traffic = service_of(client).traffic
        monkeypatch.setattr(gate_module, "in_pieces", lambda message: seen.append(traffic.held) or in_pieces(message))
        answers = [client.post("/v1/runs/vqa/encode_text", json={"texts": "what"}) for _ in sizes]
        assert (traffic.active, traffic.accepted, traffic.held) == (0, 0, 0)
    assert (answers[0].status_code, len(answers[0].content)) == (200, 100_000)
    assert (answers[1].status_code, "too many large requests" in answers[1].text) == (503, True)
    assert seen[:2] == [100_000, 100_000]
    assert all(name.startswith("write") for name in threads)


def test_long_answers_go_out_in_pieces():
    whole: dict[str, Any] = {"type": "http.response.body", "body": bytes(range(256)) * 1000}
    found = [*in_pieces(whole)]
    assert b"".join(each["body"] for each in found) == whole["body"]
    assert [each.get("more_body", False) for each in found] == [True] * 4 + [False]
    assert [*in_pieces({"type": "http.response.start"}), *in_pieces({"body": b"x"})] == [
        {"type": "http.response.start"},
        {"body": b"x"},
    ]


def test_pictures_that_hang_stop_nothing_else(index, monkeypatch):
    go, hangs = threading.Event(), threading.Event()

    def image(_: int) -> None:
        hangs.set()
        go.wait(60)
        raise BadSampleError("picture", "hung")

    monkeypatch.setattr(index, "image", image)
    monkeypatch.setattr(app_module, "MOST_PICTURES", 2)
    with serving(index.encoder, index=index, limits=Limits(wait_seconds=0.05, queue=1)) as client:
        painter = service_of(client).painter
        answers = [client.get("/v1/pictures/1")]  # hangs, and goes on to
        assert hangs.wait(60)
        assert client.post("/v1/search", json={"words": "red", "rerank": 0}).status_code == 200
        answers.append(client.get("/v1/pictures/1"))  # waits behind it
        assert len(painter) == 0
        for _ in range(2):
            painter.submit(Job(compute=lambda given: [None], given=None))
        answers.append(client.get("/v1/pictures/1"))
        go.set()
        painter.submit(Job(compute=lambda given: [None], given=None)).result(60)
        client.get("/healthz")  # after what the painter has told the event loop
    for answer, why in zip(
        answers, ("has waited for 0.05 s", "has waited for 0.05 s", "2 pictures are waited for"), strict=True
    ):
        assert (answer.status_code, why in answer.json()["error"]) == (503, True)
    futures = [each for each in gc.get_objects() if type(each) is asyncio.Future]
    assert not [each for each in futures if each._log_traceback]  # the picture's late failure, which is told to nobody


def test_a_thread_that_computes_no_more_is_no_health(runs):
    def leave(_: Any) -> list[Any]:
        raise SystemExit

    with serving(runs["vqa"]) as client:
        compute = service_of(client).compute
        job = Job(compute=leave, given=None)
        compute.submit(job)
        with pytest.raises(RuntimeError, match="SystemExit"):  # as an error of its own, for the loop would end with it
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
        contextlib.closing(sqlite3.connect(index.store.folder / DATABASE)) as other,
    ):
        other.execute("BEGIN EXCLUSIVE")
        started = time.monotonic()
        answer = client.post("/v1/search", json={"words": "red"})
        assert time.monotonic() - started < 3  # SQLite would wait for 5 s
        other.rollback()
        assert client.post("/v1/search", json={"words": "red"}).status_code == 200
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
    assert (answer.status_code, answer.json()) == (500, {"error": "the server failed at this request; its log says why"})


def test_a_damaged_index_is_the_servers_fault(folder, runs, caplog):
    """Not its client's, and nothing to try again."""
    for damage, why in (("pictures-00000.f16", "lacks features"), (DATABASE, "not a database")):
        place = folder / f"damaged {damage}"
        runs["retrieval"].index(folder / "photos", place)
        index = Index.open(place, runs["retrieval"])
        with serving(index.encoder, index=index) as client:
            (place / damage).write_bytes(bytes(10_000) if damage == DATABASE else b"")
            answer = client.post("/v1/search", json={"words": "red"})
        assert (answer.status_code, answer.json()) == (500, {"error": "the server failed at this request; its log says why"})
        assert f"{place / damage}" in caplog.text
        assert why in caplog.text


def test_an_index_that_has_changed_is_looked_at_again(folder, runs):
    """By page and search: another process has brought another source into it."""
    runs["retrieval"].index(folder / "photos" / "old", folder / "grows")
    index = Index.open(folder / "grows", runs["retrieval"])
    queries: list[str] = []
    index.store.db.set_trace_callback(queries.append)
    with serving(index.encoder, index=index) as client:
        about = lambda: client.get("/v1/runs").json()["index"]  # noqa: E731
        assert (about()["pictures"], about()["folders"]) == (4, ["old"])
        assert sum("DISTINCT key" in query for query in queries) == 1  # for two who load the page
        runs["retrieval"].index(folder / "photos" / "new", folder / "grows")
        assert (about()["pictures"], about()["folders"]) == (6, ["old", "new"])
        hits = client.post("/v1/search", json={"words": "red", "folder": "new"}).json()["hits"]
        assert {hit["name"] for hit in hits} == {"new/04.png", "new/05.png"}


def test_a_token_opens_the_rest(runs, tmp_path):
    (tmp_path / "index.html").write_text("<p>page")
    with serving(runs["vqa"], token="sesame", page={"/": tmp_path / "index.html"}) as client:
        given = {"authorization": "Bearer sesame"}
        for path in ("/v1/runs", "/metrics", "/openapi.json", "/other"):
            assert client.get(path).status_code == 401
            assert client.get(path, headers={"authorization": "Bearer sesamE"}).status_code == 401
            assert client.get(path, headers=given).status_code == (404 if path == "/other" else 200)
        assert client.get("/v1/runs", headers={"authorization": "bearer sesame"}).status_code == 200  # RFC 9110: in any case
        assert client.get("/v1/runs", headers={"authorization": "Basic sesame"}).status_code == 401
        assert client.get("/healthz").json() == {"status": "ok"}
        assert client.head("/healthz").status_code == 200
        assert client.get("/").text == "<p>page"
        assert client.get("/v1/runs", headers=given | {"host": "example.org"}).status_code == 200
    with serving(runs["vqa"]) as client:  # or else a page from elsewhere could have its own name mean this machine
        assert [
            client.get("/v1/runs", headers={"host": host}).status_code
            for host in ("localhost:1", "LocalHost", "[::1]:1", "127.0.0.2:1", "example.org", "127.0.0.1.example.org")
        ] == [*(200, 200, 200, 200, 400, 400)]


# Search


def test_search_gives_what_the_index_gives(client, index, folder):
    for given in ({"words": "a red circle", "top": 3}, {"image": ONE, "captions": True}, {"words": "red", "without": "blue"}):
        hits = index.search(**given)
        found = client.post("/v1/search", json={name: sent(value) for name, value in given.items()}).json()["hits"]
        assert [hit["id"] for hit in found] == [hit.id for hit in hits]
        assert_same([hit["score"] for hit in found], [hit.score for hit in hits])
        names = [hit.name.removeprefix(f"{folder}/") for hit in hits]
        assert [hit["name"].removeprefix(f"{folder.name}/") for hit in found] == names
    several = client.post("/v1/search", json={"words": ["red", "blue"], "top": 2}).json()
    assert [[hit["id"] for hit in each["hits"]] for each in several] == [
        [hit.id for hit in index.search(words, top=2)] for words in ("red", "blue")
    ]
    assert client.post("/v1/search", json={"words": []}).json() == []
    inside = client.post("/v1/search", json={"words": "red", "folder": "photos/new"}).json()["hits"]
    assert {hit["name"] for hit in inside} == {"photos/new/04.png", "photos/new/05.png"}
    about = client.get("/v1/runs").json()["index"]
    assert (about["pictures"], about["run"], about["words"], about["captions_searchable"]) == (7, "retrieval", True, True)
    assert about["examples"] == index.examples()
    assert sorted(about["examples"]) == sorted({hit.name for hit in index.search("red", captions=True)})


def test_pictures_of_the_index_come_as_thumbnails(client, index):
    for hit in index.search("red", top=7):  # one of them lies in a shard
        answer = client.get(f"/v1/pictures/{hit.id}?size=16")
        image = Image.open(io.BytesIO(answer.content))
        assert (image.format, image.size, "max-age" in answer.headers["cache-control"]) == ("JPEG", (16, 11), True)
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    for path, status in (("99", 404), ("-1", 404), (str(2**70), 404), ("x", 400), ("1?size=15", 400), ("1?size=1025", 400)):
        assert client.get(f"/v1/pictures/{path}").status_code == status
    with serving(index.encoder) as bare:
        assert [bare.get("/v1/pictures/1").status_code, bare.post("/v1/search", json={}).status_code] == [404, 404]
        assert bare.get("/v1/runs").json()["index"] is None


# The process


def test_the_command_says_what_it_lacks(eve, folder, monkeypatch):
    monkeypatch.delenv("EVE_TOKEN", raising=False)
    run = folder / "runs" / "retrieval"
    for args, message in (
        ((), "name run folders to serve, or an --index"),
        ((run, "--host", "0.0.0.0"), "other machines can reach it; give a --token"),
        ((run, "--token", "schlüssel"), "--token: a header cannot carry it"),
        ((run, "--queue", "0"), "--queue: 0 was given, expected more than 0"),
        ((run, "--port", "70000"), "is no port, expected 0 to 65535"),
    ):
        found = eve("serve", "--port", "0", *args)
        assert (found.returncode, found.stderr.count("\n"), message in found.stderr) == (2, 1, True), found.stderr


class Quiet(asyncio.Transport):
    """A connection whose client takes what it likes."""

    left = 0
    end = ""

    def is_closing(self) -> bool:
        return bool(self.end)

    def get_write_buffer_size(self) -> int:
        return self.left

    def close(self) -> None:
        self.end = self.end or "closed"

    def abort(self) -> None:
        self.end = "aborted"


@dataclass(eq=False)
class Cycle:
    """A request."""

    response_complete: bool = True


@dataclass(eq=False)
class Connection:
    """What uvicorn knows of a connection."""

    cycle: Cycle = field(default_factory=Cycle)
    transport: Quiet = field(default_factory=Quiet)


def test_who_takes_an_answer_slowly_gets_all_of_it(runs):
    """The clock of a connection begins anew with each request and with all that is taken."""
    server = Server(uvicorn.Config(silent, log_config=None), application([runs["vqa"]], limits=Limits(body_seconds=10)))
    reads, stands, _, asks, unread = connections = [Connection() for _ in range(5)]
    reads.transport.left = stands.transport.left = unread.transport.left = 1000
    unread.cycle.response_complete = False
    unread.transport.close()  # given up by the gate
    server.server_state.connections = {*connections}  # pyright: ignore[reportAttributeAccessIssue]
    for second in range(100):
        reads.transport.left -= second % 9 == 0
        asks.cycle = Cycle() if second % 9 == 0 else asks.cycle
        server._hang_up(second)
        if second == 10:
            assert {each.transport.end for each in connections[:4]} == {""}
    assert [each.transport.end for each in connections] == ["", "aborted", "aborted", "", "aborted"]


@contextlib.contextmanager
def listening_server(app: Any) -> Iterator[tuple[Any, int]]:
    """A server that answers sockets, in a thread."""
    with listening("127.0.0.1", 0) as listener:
        server: Any = Server(settings(app), app)
        server.thread = threading.Thread(target=server.run, args=([listener],))
        server.thread.start()
        try:
            yield server, listener.getsockname()[1]
        finally:
            server.should_exit = server.force_exit = True
            server.thread.join()


def test_a_stop_does_not_wait_for_who_never_reads(runs):
    app = application([runs["vqa"]], limits=Limits(body_seconds=0.5))
    with listening_server(app) as (server, port), socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        deaf.connect(("127.0.0.1", port))
        deaf.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 1000)
        while not any(each.transport.get_write_buffer_size() for each in [*server.server_state.connections]):
            time.sleep(0.01)
        server.handle_exit(signal.SIGTERM, None)
        server.thread.join(20)
        assert not server.thread.is_alive()


def asked(port: int, body: bytes, sockets: contextlib.ExitStack) -> socket.socket:
    """A connection over which vqa's answer was asked for."""
    connection = sockets.enter_context(socket.create_connection(("127.0.0.1", port), 60))
    head = f"POST {VQA} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
    connection.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
    return connection


def until(is_so: Callable[[], object]) -> None:
    started = time.monotonic()
    while not is_so():
        assert time.monotonic() - started < 60
        time.sleep(0.01)


QUESTION = json.dumps({"image": text_of(ONE), "question": "what"}).encode()


@pytest.mark.parametrize("seconds", [0.0, 60.0])
def test_a_second_signal_ends_at_once_but_for_one_that_comes_with_the_first(runs, monkeypatch, seconds):
    monkeypatch.setattr(server_module, "AGAIN", 30.0)
    app, go, body = application([runs["vqa"]]), threading.Event(), QUESTION
    with contextlib.ExitStack() as sockets, listening_server(app) as (server, port):
        until(lambda: server.service.compute.is_alive())
        first = Job(compute=lambda given: [go.wait(60)], given=None)
        server.service.compute.submit(first)
        until(first.result.running)
        waiting = [asked(port, body, sockets) for _ in range(3)]
        until(lambda: len(server.service.compute) == 3)
        server.handle_exit(signal.SIGINT, None)
        server._stops_since -= seconds
        server.handle_exit(signal.SIGTERM, None)
        if not seconds:
            until(lambda: "503" in got(port, "/v1/runs"))
            go.set()
        answers = [read_all(connection) for connection in waiting]
        server.thread.join(60)
        go.set()
    assert {answer.split()[1] for answer in answers} == ({"503"} if seconds else {"200"})
    assert all("retry-after: 5" in answer for answer in answers) == bool(seconds)


def test_what_is_hung_up_on_is_not_computed(runs):
    app, go, body = application([runs["vqa"]]), threading.Event(), QUESTION
    with contextlib.ExitStack() as sockets, listening_server(app) as (server, port):
        until(lambda: server.service.compute.is_alive())
        server.service.compute.submit(Job(compute=lambda given: [go.wait(60)], given=None))
        waiting = [asked(port, body, sockets) for _ in range(3)]
        until(lambda: len(server.service.compute) == 3)
        waiting[1].close()
        until(lambda: len(server.service.compute) == 2)
        assert server.traffic.accepted == 2
        go.set()


def test_who_sends_too_much_is_told_so(runs):
    """Though the server does not want the rest: a connection that ends before all is read is reset, and its answer is lost."""
    body = b" " * (8 * MB)
    for path, status in ((VQA, "413"), ("/v1/runs", "405")):
        with contextlib.ExitStack() as sockets:
            _, port = sockets.enter_context(listening_server(application([runs["vqa"]], limits=Limits(body_mb=1))))
            connection = sockets.enter_context(socket.create_connection(("127.0.0.1", port), 60))
            head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            answer = read_all(connection)
        assert answer.split()[1] == status


def test_connections_that_are_too_many_are_told_so(runs, monkeypatch):
    monkeypatch.setattr(server_module, "most_connections", lambda: 2)
    with contextlib.ExitStack() as sockets, listening_server(application([runs["vqa"]])) as (_, port):
        two = [sockets.enter_context(socket.create_connection(("127.0.0.1", port), 60)) for _ in range(2)]
        for connection in two:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert connection.recv(15) == b"HTTP/1.1 200 OK"
        refused = got(port, "/healthz")
    assert (refused.split()[1], "retry-after: 1" in refused) == ("503", True)
    assert json.loads(refused.partition("\r\n\r\n")[2])["error"].startswith("the server has as many connections as it can")


def test_connections_leave_files_for_the_rest(monkeypatch):
    limits = [256, 4096]
    monkeypatch.setattr(resource, "getrlimit", lambda _: tuple(limits))
    monkeypatch.setattr(resource, "setrlimit", lambda _, given: limits.__setitem__(slice(None), given))
    assert (server_module.most_connections(), limits) == (2048, [4096, 4096])
    limits[:] = 256, 600
    assert (server_module.most_connections(), limits) == (500, [600, 600])


def test_sigterm_loses_no_request_that_has_begun(eve_process, folder, index):
    """Ten bodies are half there when the signal comes: their other halves are read, and all are answered."""
    with contextlib.ExitStack() as sockets, eve_process("serve", "--index", folder / "index", "--port", "0") as process:
        try:
            port = int(re.findall(r":(\d+) ", process.stdout.readline())[0])
            body = json.dumps({"words": "a red circle"}).encode()
            head = f"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
            begun = [sockets.enter_context(socket.create_connection(("127.0.0.1", port), 60)) for _ in range(10)]
            for connection in begun:
                connection.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body[:9])
            while f"eve_held_bytes {90.0}" not in got(port, "/metrics"):
                time.sleep(0.02)
            process.send_signal(signal.SIGTERM)
            while "503" not in got(port, "/healthz"):
                time.sleep(0.02)
            refused = got(port, "/v1/runs")
            for connection in begun:
                connection.sendall(body[9:])
            answers = [read_all(connection) for connection in begun]
            assert process.wait(60) == 0
        finally:
            process.kill()
    assert "503" in refused.splitlines()[0]
    assert "retry-after: 5" in refused
    assert [answer.splitlines()[0] for answer in answers] == ["HTTP/1.1 200 OK"] * 10
    assert all('"hits":[{' in answer for answer in answers)


def got(port: int, path: str) -> str:
    with socket.create_connection(("127.0.0.1", port), 60) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        return read_all(connection)


def read_all(connection: socket.socket) -> str:
    data = b""
    while part := connection.recv(65536):
        data += part
    return data.decode()
