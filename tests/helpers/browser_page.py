"""The web page in a browser: a server in a thread, images to drop, and what the page shows."""

import base64
import contextlib
import io
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from eve_vl.eve import Eve
from eve_vl.search.index import Index
from eve_vl.serve.application import application
from eve_vl.serve.server import Server, listening, settings
from helpers.serving import png

SIDE = 16  # pixels of an image that fits the runs


@contextlib.contextmanager
def serving_page(
    runs: list[Eve], index: Index | None = None, token: str | None = None
) -> Iterator[str]:
    """Serve the page from a thread; yield its address."""
    app = application(runs, index, token=token, with_page=True)
    with listening("127.0.0.1", 0) as listener:
        server = Server(settings(app))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)


def upload(seed: int) -> Any:
    """Return a file for a field of images."""
    return {
        "name": f"{seed}.png",
        "mimeType": "image/png",
        "buffer": png(seed, SIDE, SIDE),
    }


DROP = """([selector, event, data]) => {
    const transfer = new DataTransfer();
    const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
    transfer.items.add(new File([bytes], "dropped.png", {type: "image/png"}));
    const [kind, name] = event === "drop"
        ? [DragEvent, "dataTransfer"] : [ClipboardEvent, "clipboardData"];
    document.querySelector(selector).dispatchEvent(
        new kind(event, {bubbles: true, cancelable: true, [name]: transfer}));
}"""


def drop(
    page: Any,
    selector: str,
    seed: int,
    event: str = "drop",
) -> None:
    """Drop an image on something, or paste it there."""
    data = base64.b64encode(png(seed, SIDE, SIDE)).decode()
    page.evaluate(DROP, [selector, event, data])


def shown_pixels(page: Any, selector: str) -> list:
    """Return the pixels of an image of the page that has come as PNG."""
    source = page.locator(selector).get_attribute("src")
    data = base64.b64decode(source.removeprefix("data:image/png;base64,"))
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).tolist()


def hit_names(page: Any) -> list[str]:
    titles = page.locator(".found .thumb").evaluate_all("all => all.map((thumb) => thumb.title)")
    return [title.removeprefix("photos/") for title in titles]


def index_names(index: Index, query: str = "", **options: Any) -> list[str]:
    """Return the names of hits as the page shows them."""
    return [Path(hit.name).name for hit in index.search(query, **options)]


def wait_for(page: Any, read: Callable[[], Any], expected: Any) -> None:
    """Wait until the page shows something."""
    for _ in range(100):
        if read() == expected:
            return
        page.wait_for_timeout(50)
    assert read() == expected


def natural_width(page: Any, selector: str) -> int:
    return page.locator(selector).first.evaluate("(image) => image.naturalWidth")
