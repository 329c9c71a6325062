"""Calls over HTTP: the body of a request class, the job that it asks for, and its result as JSON.

Images are base64 text. No text of a client is ever a path.
"""

import base64
import binascii
import dataclasses
import functools
import inspect
import io
import json
import math
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Union

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from eve_vl.data.decoding import size_of
from eve_vl.data.records import ImageBytes, ImagePixels
from eve_vl.eve import ALWAYS, Eve
from eve_vl.predict import requests
from eve_vl.predict.inputs import GivenImage
from eve_vl.predict.requests import Images, Request, Texts, fields_of
from eve_vl.search.query import shrunk
from eve_vl.serve import MAX_LENGTH, MAX_VALUES, MOST_HITS, MOST_RERANKED, MOST_RESULTS, Limits, RequestRefusedError
from eve_vl.serve.batching import Job
from eve_vl.utils.errors import UserError, nearest

SHOWN_SIDE = 512  # pixels of images that are returned
PREFIX = re.compile(r"data:image/[\w.+-]{1,40};base64,")
LARGEST = 2**63 - 1
BOUNDS = {"top": (1, MOST_HITS), "rerank": (0, MOST_RERANKED)}  # of a search
TEXT = f"a text of at most {MAX_LENGTH:,} letters"
WORDS: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false", type(None): "null", str: TEXT}


@dataclass(frozen=True, kw_only=True)
class EncodeImage(Request):
    """Return features of one or several images, (n, d), each of length 1, in order."""

    by_rows = True
    images: Images
    """Images."""


@dataclass(frozen=True, kw_only=True)
class EncodeText(Request):
    """Return features of one or several texts, (n, d), each of length 1, in order."""

    by_rows = True
    texts: Texts
    """Texts."""


@dataclass(frozen=True, kw_only=True)
class Search(Request):
    """Find images of the index by a query, by an image or by both; or captions.

    Lists of queries and images are answered row by row.
    """

    by_rows = True
    examples: ClassVar[Mapping[str, str]] = {"query": "a red circle"}
    query: Texts = ""
    """Query."""
    image: Images | None = None
    """Image, alone or with a query."""
    without: str = ""
    """Query for images to avoid."""
    captions: bool = False
    """Whether to find captions instead of images."""
    top: int = 20
    """Number of hits."""
    rerank: int | None = None
    """Candidates that the matching head ranks again, 0 for none; default: as validation chose for the run."""
    folder: str | None = None
    """Folder of the index, as hits name it, that hits must lie in."""
    where: Mapping[str, str] | None = None
    """Values by column that the table's row of an image must have."""


REQUESTS = {"encode_image": EncodeImage, "encode_text": EncodeText}


class Endpoint:
    """A call of `Eve`, or the search in an index, over HTTP."""

    def __init__(
        self,
        name: str,
        request: type[Request],
        call: Callable[..., Any],
        limits: Limits,
        *,
        image_size: int,
        by_rows: bool,
        bounds: Mapping[str, tuple[int, int]] = types.MappingProxyType({}),
        num_reranked: Callable[[Mapping[str, Any]], int] = lambda _: 0,
    ):
        """by_rows: whether lists are answered row by row, so that several clients can share a batch. bounds: smallest and
        largest values of numbers. num_reranked: hits of a row that are re-ranked, at most."""
        self.name, self.request, self.call, self.limits = name, request, call, limits
        self.image_size, self.by_rows, self.num_reranked = image_size, by_rows, num_reranked
        self.fields = fields_of(request)
        served = {field.name: _served_type(field, limits, bounds.get(field.name)) for field in self.fields.values()}
        self.expected = {field: words for field, (_, words) in served.items()}
        columns: dict[str, Any] = {
            field.name: (
                served[field.name][0],
                Field(... if field.is_required else field.default, description=f"{field.text} ({self.expected[field.name]})"),
            )
            for field in self.fields.values()
        }
        strict = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
        self.model: type[BaseModel] = create_model(f"{name}_request", __config__=strict, **columns)

    def prepare(self, body: bytes) -> tuple[Job, int]:
        """Return the job that a body asks for, and its size in bytes with images decoded.

        Raises RequestRefusedError or UserError.
        """
        given = parsed(self.model, self.expected, body)
        kinds = {name: field.given for name, field in self.fields.items() if field.given is not None}
        images = {name: kind for name, kind in kinds.items() if kind.kind == "image" and given[name] is not None}
        opened = {name: [*self._images(name, given[name])] for name in images}
        self._check_pixels([pixels for each in opened.values() for _, pixels in each])
        values, size = dict(given), len(body)
        for name, each in opened.items():
            found = [decoded(image, None if images[name].is_shown else self.image_size) for image, _ in each]
            values[name] = found if isinstance(given[name], list) else found[0]
            size += sum(one.pixels.nbytes for one in found) - sum(map(len, _listed(given[name])))
        rows = {name: values[name] for name, kind in kinds.items() if kind.several and values[name] is not None}
        lengths = [len(value) for value in rows.values() if isinstance(value, list)]
        num = max(lengths, default=1) if self.request.by_rows else math.prod(lengths)
        self._check_results(values, num)
        if not self.by_rows:
            return Job(compute=lambda given: [self.call(**each) for each in given], given=values), size
        if len({*lengths}) > 1:
            found = " and ".join(map(str, sorted({*lengths})))
            raise RequestRefusedError(400, f"lists of {found}: give lists of equal length, or one for all")
        options = {name: value for name, value in values.items() if name not in rows}
        key = id(self), *sorted(rows), json.dumps(options, sort_keys=True)
        return Job(compute=self._together, given=(rows, options, bool(lengths), num), key=key, rows=num), size

    def _images(self, name: str, value: Any) -> list[tuple[GivenImage, int]]:
        """Return the images of a field and the pixels of each."""
        if not isinstance(value, list):
            return [opened_image(value, name, self.limits)]
        return [opened_image(one, f"{name} {number}", self.limits) for number, one in enumerate(value)]

    def _check_pixels(self, pixels: list[int]) -> None:
        """Raise RequestRefusedError for images that would occupy a decoding thread too long."""
        most = self.limits.pixels
        if sum(pixels) > most:
            found = f"{len(pixels)} images have {sum(pixels):,} pixels together, at most {most:,} are accepted in a request"
            raise RequestRefusedError(400, f"{found}; send fewer, or smaller ones")

    def _check_results(self, values: Mapping[str, Any], rows: int) -> None:
        """Raise RequestRefusedError for results that would occupy the computing thread too long."""
        each = {"lists": 1, "top": values.get("top") or 1 if rows > 1 else 1, "rerank": self.num_reranked(values)}
        for name, value in values.items():
            if isinstance(value, dict):  # prompts, each of which is compared with every row
                each[name] = sum(len(texts) for texts in value.values() if isinstance(texts, list))
        name, most = max(each.items(), key=lambda item: item[1])
        if rows * most > MOST_RESULTS:
            raise RequestRefusedError(400, f"{name}: {rows} × {most} results are asked for, at most {MOST_RESULTS:,} at a time")

    def _together(self, given: Sequence[tuple[dict[str, Any], dict[str, Any], bool, int]]) -> list[Any]:
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
        """Return the call's form for the page: title, and fields with label, kind and example; None without a title."""
        if not self.request.title:
            return None
        fields = [
            {
                "name": field.name,
                "label": re.split("[,;:.]", field.text)[0],
                "kind": field.given.kind,
                "required": field.is_required,
                "example": self.request.examples.get(field.name, ""),
            }
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
        size, by_rows = eve.run.config.input.image_size, is_exact and request.by_rows
        found[name] = Endpoint(name, request, call, limits, image_size=size, by_rows=by_rows)
    return found


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else [value]


def _served_type(field: requests.Field, limits: Limits, bounds: tuple[int, int] | None) -> tuple[Any, str]:
    """Return the type of a field in the body, and the type in words."""
    text = Annotated[str, Field(max_length=MAX_LENGTH)]
    match field.given:
        case None if bounds is not None:
            low, high = bounds
            hint, words = Annotated[int, Field(ge=low, le=high)], f"a whole number from {low} to {high}"
        case None:
            return _plain_type(field.hint, limits)
        case given if given.kind == "prompts":
            texts = Annotated[list[text], Field(max_length=limits.items)]
            hint = Annotated[dict[str, texts], Field(max_length=limits.items)]
            words = f'an object of at most {limits.items} entries as {{"name": ["text", …]}}, {TEXT}'
        case given:
            is_image, most = given.kind == "image", 2 if given.is_shown else limits.items
            hint, words = (Annotated[str, Field(min_length=1)], "an image as base64 text") if is_image else (text, TEXT)
            if given.several:
                hint = Union[hint, Annotated[list[hint], Field(max_length=most)]]  # noqa: UP007 (| lacks bounds)
                words = f"{words}, or a list of at most {most}"
    if field.default is None:
        hint, words = Union[hint, None], f"{words}, or null"  # noqa: UP007
    return hint, words


def _plain_type(hint: Any, limits: Limits) -> tuple[Any, str]:
    """Return a type of a field without images as a type of the body, and in words."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        found = [_plain_type(part, limits) for part in parts]
        return Union[tuple(part for part, _ in found)], " or ".join(words for _, words in found)  # noqa: UP007
    if origin is Literal:
        return hint, f"one of {', '.join(parts)}"
    if origin is tuple:
        item, words = _plain_type(parts[0], limits)
        return Annotated[list[item], Field(max_length=MAX_LENGTH)], f"a list of at most {MAX_LENGTH:,}, each {words}"
    text = Annotated[str, Field(max_length=MAX_LENGTH)]
    if origin is not None:  # a mapping of texts
        words = f'an object of at most {limits.items} entries as {{"name": "text"}}, {TEXT}'
        return Annotated[dict[str, text], Field(max_length=limits.items)], words
    bounded = {int: Annotated[int, Field(ge=-LARGEST, le=LARGEST)], str: text}
    return bounded.get(hint, hint), WORDS[hint]


def parsed(model: type[BaseModel], expected: Mapping[str, str], body: bytes) -> dict[str, Any]:
    """Return the fields of a body, with defaults. Raises RequestRefusedError."""
    if sum(map(body.count, (b",", b"[", b"{"))) > MAX_VALUES:  # base64 has none of these; small values take 100 bytes each
        raise RequestRefusedError(400, f"the body has more than {MAX_VALUES:,} commas and brackets; send fewer values")
    try:
        return dict(model.model_validate_json(body))
    except ValidationError as error:
        errors = error.errors(include_url=False, include_context=False)
    # a union (an image or a list of images) gives an error for each part: the deepest is about the part that was meant
    first = max((each for each in errors if each["loc"][:1] == errors[0]["loc"][:1]), key=lambda each: len(each["loc"]))
    kind, place, value = first["type"], first["loc"], first["input"]
    if not place:
        reason = first["msg"].removeprefix("Invalid JSON: ") if kind == "json_invalid" else f"got {_said(value)}"
        raise RequestRefusedError(
            400, f"the body is no JSON object ({reason}); send the arguments as one: {', '.join(expected)}"
        )
    name = str(place[0])
    if kind == "extra_forbidden":
        raise RequestRefusedError(400, f"no argument {nearest(name, expected)}")
    if kind == "missing":
        raise RequestRefusedError(400, f"{name} is missing: expected {expected[name]}")
    where = name + "".join(f" {part}" for part in place[1:] if isinstance(part, int))
    raise RequestRefusedError(400, f"{where}: got {_said(value)}, expected {expected[name]}")


def _said(value: Any) -> str:
    """Return a JSON value in words."""
    if isinstance(value, list):
        return f"a list of {len(value):,}"
    if isinstance(value, str):
        return f"a text of {len(value):,} letters" if len(value) > 40 else f"the text {value!r}"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)[:40]
    return "an object" if isinstance(value, dict) else WORDS.get(type(value), "something else")


def opened_image(text: str, where: str, limits: Limits) -> tuple[GivenImage, int]:
    """Return an image that is not decoded yet, and its pixels. Raises UserError."""
    start = PREFIX.match(text)
    try:
        data = base64.b64decode(text[start.end() :] if start else text, validate=True)
    except (binascii.Error, ValueError):
        raise UserError(f"{where}: is not base64; send the bytes of an image file as base64 text") from None
    width, height = size_of(data, where)
    if width * height > limits.pixels:
        raise UserError(f"{where}: has {width}×{height} pixels, at most {limits.pixels:,} are accepted; send it smaller")
    return GivenImage(ref=ImageBytes(data=data), where=where), width * height


def decoded(given: GivenImage, square: int | None) -> ImagePixels:
    """Return an image as the run's square, or with at most SHOWN_SIDE pixels a side. Raises UserError."""
    if square is None:
        return ImagePixels(pixels=given.at_most(SHOWN_SIDE))
    ref = shrunk(given, square).ref
    assert isinstance(ref, ImagePixels)
    return ref


def encoded(pixels: np.ndarray, form: str = "PNG") -> bytes:
    """Return the file of an image, uint8 (H, W, 3)."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


def as_json(value: Any) -> Any:
    """Return a result as JSON values: images as base64 PNG, other arrays as lists, dataclasses as objects."""
    if isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 3:
        return base64.b64encode(encoded(value)).decode()
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if hasattr(value, "overlays"):
        return as_json({**value.values(), "images": list(value.overlays())})
    if dataclasses.is_dataclass(value):
        return {each.name: as_json(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(name): as_json(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(each) for each in value]
    return value
