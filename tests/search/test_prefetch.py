"""Prefetching: images in order, few at a time, known ones unread."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from eve_vl.search import pending_images
from eve_vl.search.prefetch import MOST_WAITING, THREADS, prefetch


@pytest.fixture
def threads():
    with ThreadPoolExecutor(3) as pool:
        yield pool


def test_items_come_in_order_after_their_work_and_few_are_taken_ahead(threads):
    taken, done = [], []

    def numbers():
        for number in range(5 * MOST_WAITING):
            taken.append(number)
            yield number

    def work(number: int) -> None:
        threading.Event().wait(0.002 * (number % 3))  # the first may be the last to be ready
        done.append(number)

    for place, number in enumerate(prefetch(threads, work, numbers(), lambda _: True)):
        assert number == place
        assert number in done
        assert len(taken) - place <= MOST_WAITING
    assert sorted(done) == taken == list(range(5 * MOST_WAITING))


def test_errors_are_raised_in_their_turn(threads):
    def work(number: int) -> None:
        if number == 2:
            raise KeyError(number)

    found = prefetch(threads, work, range(9), lambda _: True)
    assert [next(found), next(found)] == [0, 1]
    with pytest.raises(KeyError, match="2"):
        next(found)


def test_only_new_images_are_read_and_decoded(model, photos, tmp_path, monkeypatch):
    """Five rows about each, as in tables with a row per caption; then from another folder; then once more."""
    read, decoded = [], []
    read_image, decode = pending_images.read_image, pending_images.decode
    monkeypatch.setattr(
        pending_images,
        "read_image",
        lambda image, where: read.append(image.path.name) or read_image(image, where),
    )
    monkeypatch.setattr(
        pending_images, "decode", lambda *of, **crop: decoded.append(0) or decode(*of, **crop)
    )
    names = [str(path) for path in sorted(photos.rglob("*.png"))]
    rows = [{"image": name, "caption": f"red {number}"} for name in names for number in range(5)]
    (tmp_path / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    index = model.index(tmp_path / "table.jsonl", tmp_path / "index")
    assert sorted(read) == [f"{number:02}.png" for number in range(20)]
    assert index.counts()["captions"] == 5, "five texts, each of all images"
    assert len(decoded) == 20
    photos.rename(tmp_path / "moved")
    model.index(tmp_path / "moved", tmp_path / "index")
    assert (len(read), len(decoded)) == (40, 40), "the same bytes under other names"
    model.index(tmp_path / "moved", tmp_path / "index")
    assert (len(read), len(decoded)) == (40, 40)


def test_an_unreadable_file_is_tried_once(model, photos, tmp_path, monkeypatch):
    read, read_image = [], pending_images.read_image
    monkeypatch.setattr(
        pending_images,
        "read_image",
        lambda image, where: read.append(image.path.name) or read_image(image, where),
    )
    (photos / "zero.png").touch()
    names = [str(path) for path in sorted(photos.rglob("*.png"))]
    rows = [
        {"image": name, "caption": f"red {number}"}
        for name in names
        for number in range(2 * MOST_WAITING)
    ]
    (tmp_path / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    index = model.index(tmp_path / "table.jsonl", tmp_path / "index")
    assert len(read) == len({*read}) == 21
    assert (index.counts()["distinct"], list(index.changes.broken)) == (
        20,
        [str(photos / "zero.png")],
    )


def test_ctrl_c_does_not_wait_for_queued_rows(model, photos, tmp_path, monkeypatch):
    begun = []

    def read_image(image, where):
        begun.append(image)
        if len(begun) == 1:
            raise KeyboardInterrupt
        threading.Event().wait(0.05)
        return b""

    monkeypatch.setattr(pending_images, "read_image", read_image)
    with pytest.raises(KeyboardInterrupt):
        model.index(photos, tmp_path / "index")
    assert len(begun) <= THREADS + 1
