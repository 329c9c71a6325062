"""Calls over HTTP: body of a request class, job, result as JSON, examples.

Images are base64 text. No text of a client is ever a path.
"""

import base64
import binascii
import contextlib
import functools
import inspect
import io
import json
import math
import re
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Union, get_args, get_origin

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic_core import to_json

from eve_vl.config.training import generator_names
from eve_vl.data.decoding import size_of
from eve_vl.data.image_refs import ImageBytes, ImagePixels
from eve_vl.data.opening import open_sources
from eve_vl.data.tokenizer import MASK_TEXT
from eve_vl.eve import ALWAYS, Eve
from eve_vl.predict import requests
from eve_vl.predict.inputs import GivenImage
from eve_vl.predict.requests import Images, Request, Texts, fields_of
from eve_vl.search.index import Index
from eve_vl.search.search_options import SearchOptions
from eve_vl.serve import (
    MAX_LENGTH,
    MAX_VALUES,
    MOST_HITS,
    MOST_RERANKED,
    MOST_RESULTS,
    Limits,
    RequestRefusedError,
)
from eve_vl.serve.batching import Job
from eve_vl.tasks.masked_signal.requests import FillMask
from eve_vl.utils.errors import BadSampleError, UserError, nearest

SHOWN_SIDE = 512  # pixels of images that are returned
PREFIX = re.compile(r"data:image/[\w.+-]{1,40};base64,")
LARGEST = 2**63 - 1
TEXT = Annotated[str, Field(max_length=MAX_LENGTH)]
IMAGE = Annotated[str, Field(min_length=1, description="An image file as base64 text.")]
NUM_EXAMPLES = 5  # of the page
EXAMPLE_SIDE = 144  # pixels: people look at these images, too, so they are larger than the inputs of small runs
Row = tuple[list[str], tuple[str, ...]]
"""Images, left to right, as base64 PNG, and texts."""


class EncodeImage(Request):
    """Return features of one or several images, (n, d), each of length 1, in order."""

    by_rows = True
    images: Images
    """Images."""


class EncodeText(Request):
    """Return features of one or several texts, (n, d), each of length 1, in order."""

    by_rows = True
    texts: Texts
    """Texts."""


class Search(Request, SearchOptions):
    """Find images of the index by a query, by an image or by both; or captions.

    Lists of queries and images are answered row by row.
    """

    by_rows = True
    bounds: ClassVar[Mapping[str, tuple[int, int]]] = {
        "top": (1, MOST_HITS),
        "rerank": (0, MOST_RERANKED),
    }
    query: Texts = ""
    """Query, in which -WORD excludes, 2:WORD counts twice, and quotes keep words together."""
    image: Images | None = None
    """Image, alone or with a query."""
    folder: str | None = None
    """Folder of the index, as hits name it, that hits must lie in."""


REQUESTS = {"encode_image": EncodeImage, "encode_text": EncodeText}


@dataclass(kw_only=True, eq=False)
class Endpoint:
    """A call of `Eve`, or the search in an index, over HTTP."""

    request: type[Request]
    call: Callable[..., Any]
    limits: Limits
    sizes: Any
    """The run's section of inputs."""
    by_rows: bool
    """Whether lists are answered row by row; clients can then share a batch."""
    num_reranked: Callable[[Mapping[str, Any]], int] = lambda _: 0
    """Returns how many hits of a row are re-ranked, at most."""

    def __post_init__(self):
        self.fields, bounds = fields_of(self.request), getattr(self.request, "bounds", {})
        self.images = [
            name
            for name, field in self.fields.items()
            if field.given is not None and field.given.kind == "image"
        ]
        columns: dict[str, Any] = {}
        for name, field in self.fields.items():
            hint = _served_type(field, self.limits, bounds.get(name, (-LARGEST, LARGEST)))
            columns[name] = (
                hint,
                Field(... if field.is_required else field.default, description=field.text),
            )
        strict = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
        self.model: type[BaseModel] = create_model(
            self.request.__name__, __config__=strict, **columns
        )

    def has_images(self, body: bytes) -> bool:
        """Return whether a body holds images to decode. Raises RequestRefusedError."""
        values = parsed(self.model, body)
        return any(values[name] for name in self.images)

    def prepare(self, body: bytes) -> tuple[Job, int]:
        """Return the job that a body asks for, and its size in bytes with images decoded.

        Raises RequestRefusedError or UserError.
        """
        values, size = parsed(self.model, body), len(body)
        kinds = {
            name: field.given for name, field in self.fields.items() if field.given is not None
        }
        images = {name: kinds[name] for name in self.images if values[name] is not None}
        opened = {name: _opened(values[name], name, self.limits) for name in images}
        pixels = [num for each in opened.values() for _, num in each]
        if sum(pixels) > self.limits.pixels:  # they would occupy a decoding thread too long
            found = f"{len(pixels)} images have {sum(pixels):,} pixels together"
            most = f"at most {self.limits.pixels:,} are accepted in a request"
            raise RequestRefusedError(400, f"{found}, {most}; send fewer, or smaller ones")
        for name, each in opened.items():
            found = [
                decoded(image, None if images[name].is_shown else self.sizes) for image, _ in each
            ]
            is_list = isinstance(values[name], list)
            size += sum(one.pixels.nbytes for one in found) - sum(
                map(len, values[name] if is_list else [values[name]])
            )
            values[name] = found if is_list else found[0]
        rows = {
            name: values[name]
            for name, kind in kinds.items()
            if kind.several and values[name] is not None
        }
        lengths = [len(value) for value in rows.values() if isinstance(value, list)]
        num = max(lengths, default=1) if self.request.by_rows else math.prod(lengths)
        self._check_results(values, num)
        if not self.by_rows:
            return Job(
                compute=lambda given: [self.call(**each) for each in given], given=values
            ), size
        if len({*lengths}) > 1:
            found = " and ".join(map(str, sorted({*lengths})))
            raise RequestRefusedError(
                400, f"lists of {found}: give lists of equal length, or one for all"
            )
        options = {name: value for name, value in values.items() if name not in rows}
        key = id(self), *sorted(rows), json.dumps(options, sort_keys=True)
        return Job(
            compute=self._together, given=(rows, options, bool(lengths), num), key=key, rows=num
        ), size

    def _check_results(self, values: Mapping[str, Any], rows: int) -> None:
        """Refuse results that would occupy the computing thread too long."""
        each = {
            "lists": 1,
            "top": values.get("top") or 1 if rows > 1 else 1,
            "rerank": self.num_reranked(values),
        }
        for name, value in values.items():
            if isinstance(value, dict):  # prompts, each of which is compared with every row
                each[name] = sum(len(texts) for texts in value.values() if isinstance(texts, list))
        name, most = max(each.items(), key=lambda item: item[1])
        if rows * most > MOST_RESULTS:
            raise RequestRefusedError(
                400,
                f"{name}: {rows} × {most} results are asked for, at most {MOST_RESULTS:,} at a time",
            )

    def _together(
        self, given: Sequence[tuple[dict[str, Any], dict[str, Any], bool, int]]
    ) -> list[Any]:
        """Return the results of several clients with the same options."""
        if len(given) == 1:
            rows, options, *_ = given[0]
            return [self.call(**rows, **options)]
        columns: dict[str, list[Any]] = {name: [] for name in given[0][0]}
        for rows, _, _, num in given:
            for name, value in rows.items():
                columns[name] += value if isinstance(value, list) else [value] * num
        results, start, found = self.call(**columns, **given[0][1]), 0, []
        for *_, is_list, num in given:
            found.append(results[start : start + num] if is_list else results[start])
            start += num
        return found

    def form(self) -> dict[str, Any] | None:
        """Return the call's form for the page: title, fields with label, kind, example.

        None without a title.
        """
        if not self.request.title:
            return None
        fields = [
            {
                "name": field.name,
                "label": re.split("[,;:.]", field.text)[0],
                "kind": field.given.kind,
            }
            | {"required": field.is_required, "example": self.request.examples.get(field.name, "")}
            for field in self.fields.values()
            if field.given is not None
        ]
        return {"title": self.request.title, "fields": fields}


def served_calls(eve: Eve, limits: Limits) -> dict[str, Endpoint]:
    """Return the endpoints of a run by the names of their calls."""
    # experts of `reference` routing drop tokens of rows that others crowd out
    is_exact = getattr(eve.run.config.model, "routing", "dropless") != "reference"
    found = {}
    for name in eve.calls:
        request = REQUESTS[name] if name in ALWAYS else eve.predictor.requests()[name]
        call = getattr(eve, name)
        if "batch_size" in inspect.signature(call).parameters:
            call = functools.partial(call, batch_size=limits.batch)
        sizes, by_rows = eve.run.config.input, is_exact and request.by_rows
        found[name] = Endpoint(
            request=request, call=call, limits=limits, sizes=sizes, by_rows=by_rows
        )
    return found


def _served_type(field: requests.Field, limits: Limits, bounds: tuple[int, int]) -> Any:
    """Return the type of a field in the body."""
    given = field.given
    if given is None:
        return _bounded(field.hint, limits, bounds)
    hint: Any = IMAGE if given.kind == "image" else TEXT
    if given.kind == "prompts":
        hint = Annotated[
            dict[str, Annotated[list[TEXT], Field(max_length=limits.items)]],
            Field(max_length=limits.items),
        ]
    if given.several:
        most = 2 if given.is_shown else limits.items
        hint = Union[hint, Annotated[list[hint], Field(max_length=most)]]  # noqa: UP007 (| lacks bounds)
    return Union[hint, None] if field.default is None else hint  # noqa: UP007


def _bounded(hint: Any, limits: Limits, bounds: tuple[int, int]) -> Any:
    """Return a type with bounds on its numbers, texts and lengths."""
    origin, parts = get_origin(hint), get_args(hint)
    items: list[Any] = [_bounded(part, limits, bounds) for part in parts if part is not ...]
    if origin in (Union, types.UnionType):
        return Union[tuple(items)]  # noqa: UP007
    if origin is tuple:
        item = items[0]
        return Annotated[list[item], Field(max_length=MAX_LENGTH)]
    if origin is Mapping:
        return Annotated[dict[str, TEXT], Field(max_length=limits.items)]
    return {int: Annotated[int, Field(ge=bounds[0], le=bounds[1])], str: TEXT}.get(hint, hint)


def parsed(model: type[BaseModel], body: bytes) -> dict[str, Any]:
    """Return the fields of a body, with defaults. Raises RequestRefusedError."""
    if (
        sum(map(body.count, (b",", b"[", b"{"))) > MAX_VALUES
    ):  # base64 has none of these; small values take 100 bytes each
        raise RequestRefusedError(
            400, f"the body has more than {MAX_VALUES:,} commas and brackets; send fewer values"
        )
    try:
        return dict(model.model_validate_json(body))
    except ValidationError as error:
        errors = error.errors(include_url=False, include_context=False)
    # a union (an image or a list of images) gives an error for each part: the deepest is about the part that was meant
    about = [each for each in errors if each["loc"][:1] == errors[0]["loc"][:1]]
    first = max(about, key=lambda each: (len(each["loc"]), each["type"] == "too_long"))
    name, *places = first["loc"] or ("the body",)
    if first["type"] == "extra_forbidden":
        raise RequestRefusedError(400, f"no argument {nearest(str(name), model.model_fields)}")
    where = " ".join(map(str, (name, *(place for place in places if isinstance(place, int)))))
    value = repr(first["input"]) if isinstance(first["input"], int | float | str | None) else ""
    given = f" ({value} given)" if 0 < len(value) <= 40 and first["type"] != "json_invalid" else ""
    raise RequestRefusedError(400, f"{where}: {first['msg'][0].lower()}{first['msg'][1:]}{given}")


def _opened(value: str | list[str], name: str, limits: Limits) -> list[tuple[GivenImage, int]]:
    """Return the images of a field and the pixels of each."""
    named = (
        {f"{name} {number}": one for number, one in enumerate(value)}
        if isinstance(value, list)
        else {name: value}
    )
    return [opened_image(one, where, limits) for where, one in named.items()]


def opened_image(text: str, where: str, limits: Limits) -> tuple[GivenImage, int]:
    """Return an image that is not decoded yet, and its pixels. Raises UserError."""
    start = PREFIX.match(text)
    try:
        data = base64.b64decode(text[start.end() :] if start else text, validate=True)
    except (binascii.Error, ValueError):
        raise UserError(
            f"{where}: is not base64; send the bytes of an image file as base64 text"
        ) from None
    width, height, cost = size_of(data, where)
    if cost > limits.pixels:
        scans = f"JPEG scans that cost as much as {cost:,} pixels"
        found = f"{width}×{height} pixels" if cost == width * height else scans
        raise UserError(
            f"{where}: has {found}, at most {limits.pixels:,} are accepted; send it smaller"
        )
    return GivenImage(ref=ImageBytes(data=data, is_upload=True), where=where), cost


def decoded(given: GivenImage, square: Any) -> ImagePixels:
    """Return an image as the run's square, or with at most SHOWN_SIDE pixels a side.

    Raises UserError.
    """
    whole = (
        given.whole(SHOWN_SIDE)
        if square is None
        else given.pixels(square).permute(1, 2, 0).contiguous().numpy()
    )
    return ImagePixels(pixels=whole)


def encoded(pixels: np.ndarray, form: str = "PNG") -> bytes:
    """Return the file of an image, uint8 (H, W, 3)."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


def as_json(served: Endpoint, result: Any) -> bytes:
    """Return a result as JSON.

    Dataclasses become objects, images base64 PNG, other arrays lists.
    """
    if hasattr(result, "overlays"):
        result = {**result.values(), "images": list(result.overlays())}
    shown = result if served.request is Search else {"result": result}
    return to_json(shown, inf_nan_mode="null", fallback=_without_arrays)  # JSON has no such numbers


def _without_arrays(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 3:
        return base64.b64encode(encoded(value)).decode()
    return value.tolist()


def generated_names(specs: Sequence[str]) -> list[str]:
    """Return the names of generated data among those of sources."""
    return [spec for spec in specs if spec.partition(":")[0] in generator_names()]


def generated_rows(eve: Eve) -> list[Row]:
    """Return rows of generated validation data; files may be private."""
    config, found = eve.run.config, []
    with contextlib.suppress(UserError):
        for source in open_sources(
            generated_names(config.data.val)[:1],
            config.data,
            EXAMPLE_SIDE,
            eve.task.dataset.kind_of(config),
        ):
            rows = [source[index] for index in range(min(NUM_EXAMPLES, len(source)))]
            found = [([_text(image.pixels) for image in row.images], row.texts) for row in rows]
    return found


def index_rows(index: Index) -> list[Row]:
    """Return images of the index with captions that are examples of queries."""
    found = []
    for caption, number in index.captioned(index.examples()[:NUM_EXAMPLES]):
        with contextlib.suppress(BadSampleError):
            found.append(([_text(index.image(number).whole(EXAMPLE_SIDE))], (caption,)))
    return found


def bodies(endpoint: Endpoint, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return a body of a call for each row.

    Images and texts fill its fields in their order. Prompts are the first texts of all rows, each a class. The last word of a
    text to fill in is masked.
    """
    given = {
        name: field.given.kind for name, field in endpoint.fields.items() if field.given is not None
    }
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
