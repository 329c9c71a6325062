"""Runs, an index, their site and a browser.

Tests of the page are skipped where there is no Chromium or no playwright (extra `browser`), which
drives it.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from eve_vl.eve import Eve
from eve_vl.search.index import Index
from eve_vl.systems.mlim.pair.config import PairConfig
from eve_vl.tasks.classification.config import ClassificationConfig
from helpers.browser_page import serving_page
from helpers.serving import png
from helpers.tiny_runs import TEXTS, noise, tiny_run, write_run

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
HTML = '<img src="x" onerror="document.title = \'broken into\'"> & <b>bold</b>'


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> dict[str, Eve]:
    folder = write_run(tiny_run("retrieval"), tmp_path_factory.mktemp("runs") / "retrieval")
    runs = {"retrieval": Eve.load(folder)}
    for name in ("vqa", "nlvr2", "masked"):
        runs[name] = Eve(tiny_run(name, Path(name)))
    colors = ClassificationConfig(inputs="image")
    for name, task in {"pair": PairConfig(), "colors": colors}.items():
        runs[name] = Eve(tiny_run("masked", Path(name), task=task))
    return runs


@pytest.fixture(scope="session")
def index(runs, tmp_path_factory) -> Index:
    """Thirty images and a near-duplicate, four with captions, one of which looks like HTML."""
    folder = tmp_path_factory.mktemp("site") / "photos"
    folder.mkdir()
    for number in range(30):
        (folder / f"{number:02}.png").write_bytes(png(number))
    near_duplicate = noise(7, 20, 30)
    near_duplicate[0, 0] += 1
    Image.fromarray(near_duplicate).save(folder / "again.png")
    for number, caption in enumerate((*TEXTS, HTML)):
        (folder / f"{number:02}.txt").write_text(caption)
    return runs["retrieval"].index(folder, folder.parent / "index")


# of a file, as below: later tests fork, which is unsafe while a thread serves
@pytest.fixture(scope="module")
def site(runs, index) -> Iterator[str]:
    with serving_page(list(runs.values()), index) as address:
        yield address


# of a file: playwright runs an event loop in this thread until it ends, and other tests run theirs
@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    reason = "playwright, which drives a browser, is not installed"
    sync_api = pytest.importorskip("playwright.sync_api", reason=reason)
    paths = [path for path in map(shutil.which, BROWSERS) if path]
    if not paths:
        pytest.skip("no Chromium on this machine")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=paths[0])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser) -> Iterator[Any]:
    """Opens pages whose console must stay empty.

    It shows errors of the program, and what the policy of contents refuses.
    """
    contexts = []
    console: list[str] = []

    def open_page(address: str, wait_for: str = "[role=tab]", **options: Any) -> Any:
        options = {"viewport": {"width": 1200, "height": 900}, **options}
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.set_default_timeout(10_000)
        page.on("console", lambda message: console.append(message.text))
        page.on("pageerror", lambda error: console.append(str(error)))
        page.goto(address)
        page.wait_for_selector(wait_for)
        return page

    yield open_page
    for context in contexts:
        context.close()
    # the browser itself notes refusals, and that nobody answers
    assert [line for line in console if "Failed to load resource" not in line] == []
