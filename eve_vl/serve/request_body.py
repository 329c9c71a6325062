"""Bodies of requests: read within limits, and parsed as the fields of a request class."""

import asyncio
import contextlib
import types
from collections.abc import Mapping
from typing import Annotated, Any, Union, get_args, get_origin

import starlette.requests
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic_core import ErrorDetails

from eve_vl.predict.request_fields import Field as RequestField
from eve_vl.predict.request_fields import fields_of
from eve_vl.predict.requests import Request
from eve_vl.serve.limits import MAX_LENGTH, MAX_VALUES, MB, Limits
from eve_vl.serve.refusals import RequestRefusedError
from eve_vl.serve.reservations import Reservation
from eve_vl.utils.errors import nearest

LARGEST = 2**63 - 1
TEXT = Annotated[str, Field(max_length=MAX_LENGTH)]
IMAGE = Annotated[str, Field(min_length=1, description="An image file as base64 text.")]
LONGEST_VALUE = 40  # letters of a value that a message shows


async def read_body(request: starlette.requests.Request, reservation: Reservation) -> bytes:
    """Return the body of a request.

    Raises RequestRefusedError if it is too large or too slow.
    """
    limits = reservation.reservations.limits
    parts: list[bytes] = []
    size = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(limits.body_seconds):
            async for part in request.stream():  # to the end: to close before would lose the answer
                size += len(part)
                if size <= limits.body_mb * MB:
                    reservation.resize(size)
                    parts.append(part)
            if size <= limits.body_mb * MB:
                return b"".join(parts)
    close = {"connection": "close"}
    if size > limits.body_mb * MB:
        message = f"the body has more than {limits.body_mb} MB; send fewer or smaller images"
        raise RequestRefusedError(413, message, close)
    message = f"the body was incomplete after {limits.body_seconds:g} s"
    raise RequestRefusedError(408, f"{message}; send it faster, or smaller images", close)


def body_model(request: type[Request], limits: Limits) -> type[BaseModel]:
    """Return the model of the body of a call."""
    bounds = getattr(request, "bounds", {})
    columns: dict[str, Any] = {}
    for name, field in fields_of(request).items():
        hint = _body_type(field, limits, bounds.get(name, (-LARGEST, LARGEST)))
        default = ... if field.is_required else field.default
        columns[name] = (hint, Field(default, description=field.text))
    strict = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    return create_model(request.__name__, __config__=strict, **columns)


def _body_type(field: RequestField, limits: Limits, bounds: tuple[int, int]) -> Any:
    """Return the type of a field in the body."""
    form = field.form
    if form is None:
        return _bounded_type(field.hint, limits, bounds)
    hint: Any = IMAGE if form.kind == "image" else TEXT
    if form.kind == "prompts":
        texts = Annotated[list[TEXT], Field(max_length=limits.items)]
        hint = Annotated[dict[str, texts], Field(max_length=limits.items)]
    if form.several:
        most = 2 if form.is_shown else limits.items
        list_hint = Annotated[list[hint], Field(max_length=most)]
        hint = Union[hint, list_hint]  # noqa: UP007 (| lacks bounds)
    if field.default is None:
        hint = Union[hint, None]  # noqa: UP007
    return hint


def _bounded_type(hint: Any, limits: Limits, bounds: tuple[int, int]) -> Any:
    """Return a type with bounds on its numbers, texts and lengths."""
    if hint is int:
        return Annotated[int, Field(ge=bounds[0], le=bounds[1])]
    if hint is str:
        return TEXT
    origin = get_origin(hint)
    if origin is Mapping:
        return Annotated[dict[str, TEXT], Field(max_length=limits.items)]
    if origin in (Union, types.UnionType):
        parts = tuple(_bounded_type(part, limits, bounds) for part in get_args(hint))
        return Union[parts]  # noqa: UP007
    if origin is tuple:
        item: Any = _bounded_type(get_args(hint)[0], limits, bounds)
        return Annotated[list[item], Field(max_length=MAX_LENGTH)]
    return hint


def parse_body(model: type[BaseModel], body: bytes) -> dict[str, Any]:
    """Return the fields of a body, with defaults. Raises RequestRefusedError."""
    # base64 has none of these; small values take 100 bytes each
    num_values = body.count(b",") + body.count(b"[") + body.count(b"{")
    if num_values > MAX_VALUES:
        raise RequestRefusedError(
            400, f"the body has more than {MAX_VALUES:,} commas and brackets; send fewer values"
        )
    try:
        return dict(model.model_validate_json(body))
    except ValidationError as error:
        errors = error.errors(include_url=False, include_context=False)
    raise RequestRefusedError(400, _message(model, errors))


def _message(model: type[BaseModel], errors: list[ErrorDetails]) -> str:
    """Return the message about the first error of a body."""
    # a union (an image or a list of images) gives an error for each part:
    # the deepest is about the part that was meant
    errors_of_field = [error for error in errors if error["loc"][:1] == errors[0]["loc"][:1]]
    error = max(errors_of_field, key=lambda error: (len(error["loc"]), error["type"] == "too_long"))
    name, *places = error["loc"] or ("the body",)
    if error["type"] == "extra_forbidden":
        return f"no argument {nearest(str(name), model.model_fields)}"
    numbers = [place for place in places if isinstance(place, int)]
    where = " ".join(map(str, (name, *numbers)))
    message = f"{where}: {error['msg'][0].lower()}{error['msg'][1:]}"
    if error["type"] != "json_invalid" and isinstance(error["input"], int | float | str | None):
        value = repr(error["input"])
        if len(value) <= LONGEST_VALUE:
            message += f" ({value} given)"
    return message
