"""Read tar shards from a web server with a random fault, and compare with the files on disk.

    PYTHONPATH=. python tests/remote_faults.py --faults 200 --seed 0

A process of its own opens the shards and reads all rows. It must return the right bytes, or end
with one line that names the fault. Timeouts are short, and versions are compared after each read.
"""

import hashlib
import os
import re
import shutil
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import eve_vl
from eve_vl.data import records, remote_ranges, remote_requests, remote_stores
from eve_vl.data.readers.open_source import open_source
from eve_vl.data.records import fetched
from helpers.campaign_console import campaign_parser, empty_folder, table_of
from helpers.campaign_outcomes import Answers, outcome_of
from helpers.color_cards import encoded_card
from helpers.shard_store import Store
from helpers.tars import write_tar_of

NUM_SHARDS = 3
NUM_ROWS = 8  # of a shard
LAST_FIRST_REQUEST = 24  # of the requests at which a fault may begin
OUTCOMES = ("same", "refused", "MISNAMED", "CHANGED", "traceback", "death", "hang")

NAMES = {
    "stall": r"[Tt]imeout",
    "mute": r"[Tt]imeout",
    "trickle": r"[Tt]imeout",
    "cut": r"payload is not completed",
    "long_length": r"not completed|[Nn]ot enough data|changed since|/20480 came instead of bytes",
    "short_length": r"no valid HTTP|bytes came instead|neither a member|changed since",
    "other_range": r"came instead of bytes",
    "untold_range": r"not a whole tar file|changed since it was indexed",
    "whole": r"does not support byte ranges",
    "no_range": r"does not support byte ranges",
    "bare_range": r"does not support byte ranges \(no Content-Range",
    "redirect_loop": r"redirects in a loop",
    "garbage": r"no valid HTTP",
    "garbage_header": r"no valid HTTP",
    "empty": r"bytes came instead|tells no size|not a whole tar|changed since it was indexed",
    "chunked": r"tells no size",
    "gzipped": r"tells no size|[Dd]ecod|bytes came instead",
    "hang_up": r"disconnected|no valid HTTP",
    "new_etag": r"changed since it was indexed \(another time of change or ETag\)",
    "404": r"no such file, or it has changed",
    "403": r"access was refused",
    "400": r"cannot answer the request",
    "500": r"\d tries failed \(500",
    "503": r"\d tries failed \(503",
    "replaced by equal sizes": r"changed since it was indexed \(another time of change or ETag\)",
    "replaced by other sizes": r"changed since it was indexed",
}
"""What the message of a fault must contain."""
HARMLESS = ("redirect", "slow")


@dataclass
class Fault:
    """A fault of the server."""

    name: str
    first_request: int
    """Number of the first request that may have it."""
    share: float
    """Share of the requests from then on that have it."""

    def __str__(self) -> str:
        return f"{self.name} from request {self.first_request}, share {self.share}"


class FaultyStore(Store):
    """A web server with a fault."""

    def __init__(
        self,
        folder: Path,
        fault: Fault,
        rng: Random,
    ):
        self.fault = fault
        self.rng = rng
        super().__init__(folder)

    def fault_of(self, *, is_range: bool) -> str:
        """Return what is to be wrong with the next answer."""
        number = len(self.requests) - 1
        if self.fault.name.startswith("replaced"):
            if number == self.fault.first_request:
                has_equal_sizes = self.fault.name == "replaced by equal sizes"
                write_shards(self.folder, Random(number), 0 if has_equal_sizes else 100)
            return ""
        is_due = number >= self.fault.first_request and self.rng.random() < self.fault.share
        return self.fault.name if is_due else ""


def write_shards(folder: Path, rng: Random, num_more_bytes: int = 0) -> None:
    """Write shards whose images end with random bytes, each under its name at once."""
    for number in range(NUM_SHARDS):
        members = {}
        for row in range(number * NUM_ROWS, (number + 1) * NUM_ROWS):
            noise = rng.randbytes(300 + row + num_more_bytes)
            members[f"{row:06}.png"] = encoded_card("red") + noise
            members[f"{row:06}.txt"] = b"a card %03d" % rng.randrange(1000)
        path = write_tar_of(folder / "new", members)
        path.replace(folder / f"{number:05}.tar")


def random_fault(rng: Random) -> Fault:
    """Choose a fault; one in three affects a part of the requests."""
    return Fault(
        name=rng.choice([*NAMES, *HARMLESS]),
        first_request=rng.choice((0, rng.randrange(LAST_FIRST_REQUEST))),
        share=rng.choice((1.0, 1.0, 0.3)),
    )


def answers_of(spec: str, rows: Sequence[int], *, is_bundled: bool) -> Answers:
    """Return caption and image of rows; is_bundled: several are requested at once."""
    source = open_source(spec)
    numbers: Iterable[int] = fetched(source, rows, images=True) if is_bundled else rows
    answers = []
    for row in numbers:
        record = source[row]
        image_hash = hashlib.sha256(record.image.read()).hexdigest()
        answers.append((f"{row} {record.captions} {image_hash}", 0.0))
    return answers


def run_fault(
    fault: Fault,
    rng: Random,
    base: Path,
    timeout: float,
) -> tuple[str, str]:
    """Read from a server with a fault; return the outcome, and what there is to say about it."""
    folder = base / "data"
    folder.mkdir()
    write_shards(folder, Random(0))
    rows = rng.sample(range(NUM_SHARDS * NUM_ROWS), NUM_SHARDS * NUM_ROWS)
    is_bundled = rng.random() < 0.5
    os.environ["XDG_CACHE_HOME"] = str(base / "cache")
    expected = answers_of(f"{folder}/{{00000..00002}}.tar", rows, is_bundled=False)
    with FaultyStore(folder, fault, rng) as store:

        def read(_: Path) -> Answers:
            return answers_of(store.shards, rows, is_bundled=is_bundled)

        outcome, detail = outcome_of(read, base, timeout)
        store.shutdown()
    shutil.rmtree(folder)
    shutil.rmtree(base / "cache", ignore_errors=True)
    return judged(fault.name, outcome, detail, expected), str(detail)


def judged(
    fault_name: str,
    outcome: str,
    detail: Any,
    expected: Answers,
) -> str:
    """Return the outcome of a fault, from the answers or the message and the right answers."""
    if outcome == "same" and detail != expected:
        return "CHANGED"
    if outcome == "refused" and not re.search(NAMES.get(fault_name, "$never"), detail):
        return "MISNAMED"
    return outcome


def shorten_timeouts() -> None:
    """Make faults quick, and have versions compared after each read."""
    remote_stores.READ_SECONDS = 0.5
    remote_stores.TOTAL_SECONDS = 1.2
    remote_requests.WAITS = (0.01, 0.01, 0.01)
    remote_ranges.CHECK_SECONDS = 0.0
    records.AT_ONCE = 4


def main() -> int:
    """Read with faults; return the exit status."""
    parser = campaign_parser(__doc__)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--only", help="name of the fault, such as stall")
    parser.add_argument(
        "--timeout",
        type=float,
        default=120,
        help="seconds that a fault may take",
    )
    flags = parser.parse_args()
    base = empty_folder(parser, flags.out)
    print(f"works in {base}", flush=True)
    shorten_timeouts()
    table: defaultdict[str, Counter[str]] = defaultdict(Counter)
    total: Counter[str] = Counter()
    start = time.perf_counter()
    for number in range(flags.faults):
        rng = Random(f"{flags.seed}/{number}")
        fault = random_fault(rng)
        fault.name = flags.only or fault.name
        outcome, detail = run_fault(fault, rng, base, flags.timeout)
        table[fault.name][outcome] += 1
        total[outcome] += 1
        if outcome not in ("same", "refused"):
            print(f"{number} {fault}: {outcome} {detail}", flush=True)
    seconds = time.perf_counter() - start
    print(table_of(table, OUTCOMES))
    print(f"{flags.faults} faults in {seconds:.0f} s: {dict(total)}")
    print(eve_vl.__file__)
    return any(total[outcome] for outcome in OUTCOMES[2:])


if __name__ == "__main__":
    sys.exit(main())
