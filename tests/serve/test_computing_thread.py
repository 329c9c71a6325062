"""Jobs of the same call become one batch, and no client suffers from another one's mistake."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from eve_vl.serve.computing_thread import ComputingThread, QueuedCall
from eve_vl.utils.errors import UserError
from helpers.serving import ONE, VQA, as_json, png, service_of, serving
from helpers.tiny_runs import TEXTS


def test_jobs_with_the_same_key_become_one_batch():
    batches = []

    def double(numbers: list[int]) -> list[int]:
        batches.append(numbers)
        return [2 * number for number in numbers]

    sizes = []
    thread = ComputingThread(4, lambda rows, _: sizes.append(rows))
    keys = ["a", "b", "a", None, "a", "b", None, "a", "a"]
    calls = []
    for number, key in enumerate(keys):
        calls.append(
            QueuedCall(
                compute=double,
                arguments=number,
                key=key,
            )
        )
        thread.submit(calls[-1])
    calls[4].result.cancel()  # its client has gone
    thread.start()
    thread.end()
    thread.join()
    assert batches == [
        [0, 2, 7, 8],
        [1, 5],
        [3],
        [6],
    ]
    assert sizes == [4, 2, 1, 1]
    assert calls.pop(4).result.cancelled()
    for call in calls:
        assert call.result.result() == 2 * call.arguments


@pytest.mark.parametrize(
    "error",
    [
        UserError("13"),
        ZeroDivisionError(),
    ],
)
def test_error_reaches_only_the_job_that_caused_it(error):
    def double_unless_13(numbers: list[int]) -> list[int]:
        if 13 in numbers:
            raise error
        return [2 * number for number in numbers]

    thread = ComputingThread(4)
    calls = [
        QueuedCall(
            compute=double_unless_13,
            arguments=number,
            key="a",
        )
        for number in (13, 14)
    ]
    for call in calls:
        thread.submit(call)
    thread.start()
    thread.end()
    thread.join()
    with pytest.raises(type(error)):
        calls[0].result.result()
    assert calls[1].result.result() == 28


def wait_for_calls(compute: ComputingThread, num: int) -> None:
    while len(compute) < num:
        time.sleep(0.01)


def test_clients_are_answered_from_one_batch(runs):
    """Requests that arrive during a computation form one batch; each gets its own result."""
    requests: list[dict[str, Any]] = []
    for number in range(3):
        image = [png(number), png(50)]
        requests.append(
            {
                "image": image,
                "question": TEXTS[number],
                "top": 2,
            }
        )
    requests.append(
        {
            "image": [ONE],
            "question": "",
            "top": 2,
        }
    )
    with serving(runs["vqa"]) as client, ThreadPoolExecutor(len(requests)) as threads:
        compute = service_of(client).compute
        go = threading.Event()
        compute.submit(QueuedCall(compute=lambda _: [go.wait(60)], arguments=None))
        answers = []
        for request in requests:
            answers.append(threads.submit(client.post, VQA, json=as_json(request)))
        wait_for_calls(compute, len(requests))
        go.set()
        *good, mistake = [answer.result() for answer in answers]
        compute.end()
        compute.join()  # a batch is counted after its answers are given
        metrics = client.get("/metrics").text

    assert mistake.status_code == 400
    assert mistake.json() == {"error": "text is empty"}
    for request, answer in zip(requests, good, strict=False):
        for row, expected in zip(
            answer.json()["result"], runs["vqa"].answer(**request), strict=True
        ):
            assert [item["answer"] for item in row] == [item.answer for item in expected]
            probabilities = [item.probability for item in expected]
            assert [item["probability"] for item in row] == pytest.approx(probabilities, rel=1e-4)
    assert 'eve_requests_total{call="/v1/runs/vqa/answer",status="200"} 3.0' in metrics
    # one call that waits, and three requests of two rows and a mistake of one
    assert "eve_batch_rows_sum 8.0" in metrics
    assert "eve_batch_rows_count 2.0" in metrics


def test_server_whose_thread_has_ended_is_not_healthy(runs):
    def leave(_: Any) -> list[Any]:
        raise SystemExit

    with serving(runs["vqa"]) as client:
        compute = service_of(client).compute
        call = QueuedCall(compute=leave, arguments=None)
        compute.submit(call)
        with pytest.raises(RuntimeError, match="SystemExit"):  # the loop would end with SystemExit
            call.result.result(60)
        assert client.get("/healthz").json() == {"status": "ok"}
        compute.end()
        compute.join()
        answer = client.get("/healthz")
    assert (answer.status_code, answer.json()) == (503, {"status": "failed"})
