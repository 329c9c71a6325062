"""Examples of requests, which the page offers."""

import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from eve_vl.config.generated_sources import generator_names
from eve_vl.data.opening import open_sources
from eve_vl.data.tokenizer import MASK_TEXT
from eve_vl.eve import Eve
from eve_vl.search.index import Index
from eve_vl.serve.endpoints import Endpoint
from eve_vl.serve.request_images import image_text
from eve_vl.tasks.masked_signal.requests import FillMask
from eve_vl.utils.errors import BadSampleError, UserError

NUM_EXAMPLES = 5
SIDE = 144  # pixels: people look at these images, so they are larger than inputs of small runs


class ExampleRow(NamedTuple):
    """A row of data."""

    images: list[str]
    """Left to right, as base64 PNG."""
    texts: tuple[str, ...]


def generated_specs(specs: Sequence[str]) -> list[str]:
    """Return the generated data among sources."""
    return [spec for spec in specs if spec.partition(":")[0] in generator_names()]


def generated_rows(eve: Eve) -> list[ExampleRow]:
    """Return rows of generated validation data; files may be private."""
    config = eve.run.config
    specs = generated_specs(config.data.val)[:1]
    rows: list[ExampleRow] = []
    with contextlib.suppress(UserError):
        for source in open_sources(specs, config.data, SIDE, eve.task.dataset.kind_of(config)):
            records: list[Any] = [source[row] for row in range(min(NUM_EXAMPLES, len(source)))]
            rows = [_example_row(record) for record in records]
    return rows


def _example_row(record: Any) -> ExampleRow:
    images = [image_text(image.pixels) for image in record.images]
    return ExampleRow(images, record.texts)


def index_rows(index: Index) -> list[ExampleRow]:
    """Return images of the index with captions that are examples of queries."""
    rows = []
    for caption, number in index.captioned(index.examples()[:NUM_EXAMPLES]):
        with contextlib.suppress(BadSampleError):
            pixels = index.image(number).whole(SIDE)
            rows.append(ExampleRow([image_text(pixels)], (caption,)))
    return rows


def example_bodies(endpoint: Endpoint, rows: Sequence[ExampleRow]) -> list[dict[str, Any]]:
    """Return a body of a call for each row.

    Images and texts fill its fields in their order. Prompts are the first texts of all rows, each a
    class. The last word of a text to fill in is masked.
    """
    required = {name for name, field in endpoint.fields.items() if field.is_required}
    prompts = {row.texts[0]: [row.texts[0]] for row in rows if row.texts}
    bodies = []
    for row in rows:
        texts = row.texts
        if endpoint.request is FillMask:
            texts = [f"{text.rpartition(' ')[0]} {MASK_TEXT}".strip() for text in texts]
        values = {"image": iter(row.images), "text": iter(texts), "prompts": iter([prompts])}
        body = {}
        for name, form in endpoint.inputs.items():
            value = next(values[form.kind], None)
            if value:
                body[name] = value
        if body and required <= body.keys():
            bodies.append(body)
    return bodies
