"""Measure the server's requests per second for one client and for many.

    python benchmarks/serve.py [--clients 200] [--seconds 60] [--images 10000] [--json FILE] [--quick]

Starts `eve serve` as a process on loopback, with untrained runs of the demo's size and an index of
synthetic features. One client sends a mix of calls one after the other; then many clients do the
same at once, for several rounds. Each call is also measured separately, for a fifth of the time.
Answers 503 are counted, and the client waits for Retry-After; any other answer than 200 is an
error. At the end SIGTERM arrives while all clients send; the script counts requests that the server
read but never answered.
"""

import argparse
import asyncio
import base64
import io
import json
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from made_up_photos import made_up_photo
from PIL import Image
from search_speed import CAPTIONS, made_up_index, share_below, small_run
from timing import Goal, machine

from eve_vl.config import config_to_json
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.recipes.registry import get_finetune_recipe, get_recipe
from eve_vl.run.loading import build_task
from eve_vl.train.best_folder import save_best

RATIO = Goal(limit=3.0, at_least=True)
LOST = Goal(limit=0.0, at_least=False)
PHOTOS = 32
PHOTO_SIDES = (320, 240)  # typical size after a client has reduced its image


@dataclass
class Outcome:
    """Results of the clients."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    statuses: Counter[int] = field(default_factory=Counter)
    lasted: float = 0.0

    @property
    def rate(self) -> float:
        """Requests answered with 200 per second."""
        return self.statuses[200] / self.lasted

    def __str__(self) -> str:
        waits = sorted(second for of_call in self.seconds.values() for second in of_call)
        p50, p99 = (share_below(waits, share) * 1000 for share in (0.5, 0.99))
        refused, wrong = (
            self.statuses[503],
            sum(self.statuses.values()) - self.statuses[200] - self.statuses[503],
        )
        return f"{self.rate:8.1f} requests/s, p50 {p50:7.1f} ms, p99 {p99:7.1f} ms, {refused} × 503, {wrong} errors"

    def numbers(self) -> dict[str, Any]:
        """Return the results for JSON."""
        waits = sorted(second for of_call in self.seconds.values() for second in of_call)
        about = {
            "rate": self.rate,
            "p50": share_below(waits, 0.5),
            "p99": share_below(waits, 0.99),
            "lasted": self.lasted,
        }
        return about | {"statuses": dict(self.statuses)}


def untrained_run(folder: Path, recipe: str, answers: list[str]) -> None:
    """Write an untrained run of a task of the demo."""
    config, tokenizer = (
        get_finetune_recipe(recipe, get_recipe("demo")),
        Tokenizer.train(CAPTIONS, 500),
    )
    texts = {"config.json": config_to_json(config), "tokenizer.json": tokenizer.to_json()}
    texts |= {"answers.json": json.dumps(answers)} if answers else {}
    save_best(
        folder,
        step=1,
        model=build_task(config, tokenizer, answers).state_dict(),
        texts=texts,
        numbers={},
    )


def bodies() -> dict[str, list[tuple[str, bytes]]]:
    """Return requests by call: paths and bodies."""
    photos = []
    for number in range(PHOTOS):
        image, file = Image.open(io.BytesIO(made_up_photo(number))), io.BytesIO()
        image.resize(PHOTO_SIDES).save(file, "JPEG", quality=88)
        photos.append(base64.b64encode(file.getvalue()).decode())
    make = lambda path, values: (path, json.dumps(values).encode())  # noqa: E731
    words = [f"{CAPTIONS[number % len(CAPTIONS)]} {number}" for number in range(PHOTOS)]
    pairs = list(zip(photos, words, strict=True))
    return {
        "answer": [
            make("/v1/runs/questions/answer", {"image": photo, "question": text})
            for photo, text in pairs
        ],
        "verify": [
            make("/v1/runs/statements/verify", {"left": photo, "right": other, "statement": text})
            for (photo, text), other in zip(pairs, reversed(photos), strict=True)
        ],
        "encode_image": [
            make("/v1/runs/search/encode_image", {"images": photo}) for photo, _ in pairs
        ],
        "encode_text": [make("/v1/runs/search/encode_text", {"texts": text}) for text in words],
        "search": [make("/v1/search", {"query": text}) for text in words],
    }


async def client(
    port: int, requests: list[tuple[str, str, bytes]], until: float, seed: int, outcome: Outcome
) -> None:
    """Send requests in turn over one connection, until a time or the server's stop."""
    rng = random.Random(seed)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while time.perf_counter() < until:
        name, path, body = rng.choice(requests)
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        started = time.perf_counter()
        writer.write(head.encode() + body)
        try:
            answer = await reader.readuntil(b"\r\n\r\n")
        except (ConnectionError, asyncio.IncompleteReadError):
            outcome.statuses[0] += 1
            return
        length = re.search(rb"(?i)content-length: (\d+)", answer)
        assert length is not None
        await reader.readexactly(int(length[1]))
        status = int(answer.split()[1])
        outcome.statuses[status] += 1
        if status == 200:
            outcome.seconds.setdefault(name, []).append(time.perf_counter() - started)
        elif status == 503:
            if b"connection: close" in answer.lower():  # the server stops
                break
            told = re.search(rb"(?i)retry-after: (\d+)", answer)
            await asyncio.sleep(int(told[1]) if told else 1)
    writer.close()


def measured(
    port: int, requests: list[tuple[str, str, bytes]], clients: int, seconds: float
) -> Outcome:
    """Return the results of N clients in a number of seconds."""
    outcome, started = Outcome(), time.perf_counter()

    async def all_clients() -> None:
        until = started + seconds
        await asyncio.gather(
            *(client(port, requests, until, seed, outcome) for seed in range(clients))
        )

    asyncio.run(all_clients())
    outcome.lasted = time.perf_counter() - started
    return outcome


def stopped(
    port: int, requests: list[tuple[str, str, bytes]], clients: int, server: "subprocess.Popen[str]"
) -> Outcome:
    """Return the results of N clients while SIGTERM stops the server."""
    timer = threading.Timer(1.0, server.send_signal, [signal.SIGTERM])
    timer.start()
    return measured(port, requests, clients, 60.0)


def main() -> None:
    """Measure, print and write JSON on request."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument(
        "--seconds", type=float, default=60, help="duration of the mix, for one client and for many"
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds that divide these seconds")
    parser.add_argument("--images", type=int, default=10_000, help="images in the index")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="little of everything: checks the script, measures nothing",
    )
    args = parser.parse_args()
    if args.quick:
        args.clients, args.seconds, args.rounds, args.images = 4, 0.5, 1, 100
    print(machine())
    kinds = bodies()
    everything = [(name, *request) for name, requests in kinds.items() for request in requests]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        eve = small_run(folder / "search", 256, 64)
        made_up_index(folder / "index", eve, args.images)
        untrained_run(
            folder / "questions", "demo_vqa", [f"answer {number}" for number in range(100)]
        )
        untrained_run(folder / "statements", "demo_nlvr2", [])
        runs = (str(folder / name) for name in ("search", "questions", "statements"))
        command = [sys.executable, "-m", "eve_vl", "serve", "--no-page", *runs]
        command += ["--index", str(folder / "index"), "--port", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            port = int(server.stdout.readline().split(" (")[0].rpartition(":")[2])
            try:
                numbers = measure(port, kinds, everything, args)
                end = stopped(port, everything, args.clients, server)
            finally:
                server.send_signal(signal.SIGTERM)
                code = server.wait(60)
        numbers["stop"] = {
            "answered": end.statuses[200],
            "refused": end.statuses[503],
            "lost": end.statuses[0],
            "code": code,
        }
        print(
            f"stopped under load: {numbers['stop']}, goal for lost: {LOST.check(end.statuses[0])}"
        )
    if args.json:
        args.json.write_text(json.dumps(numbers, indent=1) + "\n")


def measure(
    port: int,
    kinds: dict[str, Any],
    everything: list[tuple[str, str, bytes]],
    args: argparse.Namespace,
) -> dict[str, Any]:
    """Print and return the results of one client and of many.

    They take turns, so other work affects both equally.
    """
    measured(port, everything, 4, min(3.0, args.seconds))  # warm-up
    found = {}
    for name, requests in {**kinds, "mix": everything}.items():
        is_mix = name == "mix"
        mixed = requests if is_mix else [(name, *request) for request in requests]
        rounds, seconds = (
            (args.rounds, args.seconds / args.rounds) if is_mix else (1, args.seconds / 5)
        )
        pairs = [
            (measured(port, mixed, 1, seconds), measured(port, mixed, args.clients, seconds))
            for _ in range(rounds)
        ]
        one, many = (sum_of(each) for each in zip(*pairs, strict=True))
        ratios = sorted(more.rate / single.rate for single, more in pairs)
        middle = statistics.median(ratios)
        print(f"{name:13}   1 client  {one}\n{'':13} {args.clients:3} clients {many}")
        print(f"{'':13} ratio {middle:.2f} ({ratios[0]:.2f}–{ratios[-1]:.2f})", flush=True)
        found[name] = {
            "one": one.numbers(),
            "many": many.numbers(),
            "ratio": middle,
            "ratios": ratios,
        }
    print(
        f"mix, {args.clients} clients / one: {found['mix']['ratio']:.2f}, goal "
        f"{RATIO.check(found['mix']['ratio'])}"
    )
    return found


def sum_of(outcomes: Iterable[Outcome]) -> Outcome:
    """Merge the results of several rounds."""
    total = Outcome()
    for each in outcomes:
        total.lasted += each.lasted
        total.statuses += each.statuses
        for name, seconds in each.seconds.items():
            total.seconds.setdefault(name, []).extend(seconds)
    return total


if __name__ == "__main__":
    main()
