"""Examples of the page: bodies of calls, from generated data or the index."""

import base64
import contextlib
from collections.abc import Sequence
from typing import Any

from eve_vl.config.training import GENERATORS
from eve_vl.data.loader import open_sources
from eve_vl.data.tokenizer import MASK_TEXT
from eve_vl.eve import Eve
from eve_vl.predict.requests import FillMask
from eve_vl.search.index import Index
from eve_vl.serve.endpoints import Endpoint, encoded
from eve_vl.utils.errors import BadSampleError, UserError

NUM_ROWS = 5
SIDE = 144  # pixels: people look at these images, too, so they are larger than the inputs of small runs
Row = tuple[list[str], tuple[str, ...]]
"""Images, left to right, as base64 PNG, and texts."""


def generated_names(specs: Sequence[str]) -> list[str]:
    """Return the names of generated data among those of sources."""
    return [spec for spec in specs if spec.partition(":")[0] in GENERATORS]


def generated_rows(eve: Eve) -> list[Row]:
    """Return rows of generated validation data; files may be private."""
    config, found = eve.run.config, []
    with contextlib.suppress(UserError):
        for source in open_sources(generated_names(config.data.val)[:1], config.data, SIDE, eve.task.dataset.kind_of(config)):
            rows = [source[index] for index in range(min(NUM_ROWS, len(source)))]
            found = [([_text(image.pixels) for image in row.images], row.texts) for row in rows]
    return found


def index_rows(index: Index) -> list[Row]:
    """Return images of the index with captions that are examples of queries."""
    found = []
    for caption, number in index.captioned(index.examples()[:NUM_ROWS]):
        with contextlib.suppress(BadSampleError):
            found.append(([_text(index.image(number).whole(SIDE))], (caption,)))
    return found


def bodies(endpoint: Endpoint, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return a body of a call for each row.

    Images and texts fill its fields in their order. Prompts are the first texts of all rows, each a class. The last word of a
    text to fill in is masked.
    """
    given = {name: field.given.kind for name, field in endpoint.fields.items() if field.given is not None}
    required, found = {name for name, field in endpoint.fields.items() if field.is_required}, []
    prompts = {texts[0]: [texts[0]] for _, texts in rows if texts}
    for images, texts in rows:
        if endpoint.request is FillMask:
            texts = tuple(f"{text.rpartition(' ')[0]} {MASK_TEXT}".strip() for text in texts)
        values = {"image": iter(images), "text": iter(texts), "prompts": iter([prompts])}
        body = {name: value for name, kind in given.items() if (value := next(values[kind], None))}
        found += [body] if body and required <= body.keys() else []
    return found


def _text(pixels: Any) -> str:
    return base64.b64encode(encoded(pixels)).decode()
