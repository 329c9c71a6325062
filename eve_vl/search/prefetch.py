"""Prefetch: threads read and decode images before the encoder needs them."""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from eve_vl.utils.cores import usable_cores

# each thread may need decoding.MAX_BYTES; more decode faster than small encoders compute
THREADS = min(usable_cores(), 4)
MOST_WAITING = 4 * THREADS  # rows that are read before the encoder needs them

Item = TypeVar("Item")


def prefetch(
    threads: ThreadPoolExecutor,
    work: Callable[[Item], None],
    items: Iterable[Item],
    needs_work: Callable[[Item], bool],
) -> Iterator[Item]:
    """Yield items in order after threads have worked on those that need it.

    At most MOST_WAITING items wait. Raises errors of `work`.
    """
    # a thread costs more than an item that needs no work
    jobs = ((item, threads.submit(work, item) if needs_work(item) else None) for item in items)
    waiting = deque(itertools.islice(jobs, MOST_WAITING))
    while waiting:
        item, job = waiting.popleft()
        if job is not None:
            job.result()
        yield item
        waiting.extend(itertools.islice(jobs, 1))
