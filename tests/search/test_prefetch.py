"""Prefetching: items in order, few at a time."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from eve_vl.search import pending_images
from eve_vl.search.prefetch import MOST_WAITING, THREADS, prefetch


@pytest.fixture
def threads():
    with ThreadPoolExecutor(3) as pool:
        yield pool


def test_items_come_in_order_after_their_work_and_few_are_taken_early(threads):
    taken = []
    done = []

    def numbers():
        for number in range(5 * MOST_WAITING):
            taken.append(number)
            yield number

    def work(number: int) -> None:
        threading.Event().wait(0.002 * (number % 3))  # the first may be the last to be ready
        done.append(number)

    for position, number in enumerate(prefetch(threads, work, numbers(), lambda _: True)):
        assert number == position
        assert number in done
        assert len(taken) - position <= MOST_WAITING
    assert sorted(done) == taken == list(range(5 * MOST_WAITING))


def test_errors_are_raised_in_their_turn(threads):
    def work(number: int) -> None:
        if number == 2:
            raise KeyError(number)

    items = prefetch(threads, work, range(9), lambda _: True)
    assert next(items) == 0
    assert next(items) == 1
    with pytest.raises(KeyError, match="2"):
        next(items)


def test_ctrl_c_does_not_wait_for_queued_rows(model, photos, folder, monkeypatch):
    read = []

    def read_image(image, where):
        read.append(image)
        if len(read) == 1:
            raise KeyboardInterrupt
        threading.Event().wait(0.05)
        return b""

    monkeypatch.setattr(pending_images, "read_image", read_image)
    with pytest.raises(KeyboardInterrupt):
        model.index(photos, folder)
    assert len(read) <= THREADS + 1
