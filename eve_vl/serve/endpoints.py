"""Calls over HTTP: body → queued call, result → JSON, and the form of the page."""

import functools
import inspect
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic_core import to_json

from eve_vl.eve import ALWAYS, Eve
from eve_vl.predict.request_fields import fields_of
from eve_vl.predict.requests import Request
from eve_vl.serve.computing_thread import QueuedCall
from eve_vl.serve.limits import MOST_RESULTS, Limits
from eve_vl.serve.refusals import RequestRefusedError
from eve_vl.serve.request_body import body_model, parse_body
from eve_vl.serve.request_images import decode_square, decode_whole, image_text, open_image
from eve_vl.serve.served_requests import REQUESTS, Search

Values = dict[str, Any]
"""Fields of a request by name."""


@dataclass
class Rows:
    """The arguments of a call that is answered row by row."""

    columns: Values
    """Images and texts: one for all rows, or a list with one for each."""
    options: Values
    is_list: bool
    num: int


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
        self.fields = fields_of(self.request)
        self.inputs = {
            name: field.form for name, field in self.fields.items() if field.form is not None
        }
        """The fields that are images, texts or prompts."""
        self.images = [name for name, form in self.inputs.items() if form.kind == "image"]
        self.model = body_model(self.request, self.limits)

    def has_images(self, body: bytes) -> bool:
        """Return whether a body holds images to decode. Raises RequestRefusedError."""
        values = parse_body(self.model, body)
        return any(values[name] for name in self.images)

    def prepare(self, body: bytes) -> QueuedCall:
        """Return the call that a body asks for, with its images decoded.

        Raises RequestRefusedError or UserError.
        """
        values = parse_body(self.model, body)
        num_bytes = len(body) + self._decode_images(values)
        rows = self._rows(values)
        if self.request.by_rows:
            self._check_results(values, rows.num)
        else:  # a result for each combination of items
            self._check_results(values, math.prod(_lengths(rows.columns)))
        if not self.by_rows:
            return QueuedCall(compute=self._compute_each, arguments=values, num_bytes=num_bytes)
        _check_lengths(rows)
        options = json.dumps(rows.options, sort_keys=True)
        return QueuedCall(
            compute=self._compute_together,
            arguments=rows,
            key=(id(self), *sorted(rows.columns), options),
            rows=rows.num,
            num_bytes=num_bytes,
        )

    def _decode_images(self, values: Values) -> int:
        """Decode the images of a body in place; return how many bytes larger they become."""
        opened = {}
        costs = []
        for name in self.images:
            if values[name] is None:
                continue
            texts = values[name] if isinstance(values[name], list) else [values[name]]
            opened[name] = []
            for number, text in enumerate(texts):
                where = f"{name} {number}" if isinstance(values[name], list) else name
                image, cost = open_image(text, where, self.limits)
                opened[name].append(image)
                costs.append(cost)
        if sum(costs) > self.limits.pixels:  # they would occupy a decoding thread too long
            raise RequestRefusedError(
                400,
                f"{len(costs)} images have {sum(costs):,} pixels together, "
                f"at most {self.limits.pixels:,} are accepted in a request; "
                "send fewer, or smaller ones",
            )

        growth = 0
        for name, images in opened.items():
            if self.inputs[name].is_shown:
                decoded = [decode_whole(image) for image in images]
            else:
                decoded = [decode_square(image, self.sizes) for image in images]
            texts = values[name] if isinstance(values[name], list) else [values[name]]
            growth += sum(image.pixels.nbytes for image in decoded) - sum(map(len, texts))
            values[name] = decoded if isinstance(values[name], list) else decoded[0]
        return growth

    def _rows(self, values: Values) -> Rows:
        """Return the arguments of a call by rows."""
        columns = {}
        options = {}
        for name, value in values.items():
            is_column = name in self.inputs and self.inputs[name].several
            if is_column and value is not None:
                columns[name] = value
            else:
                options[name] = value
        lengths = _lengths(columns)
        return Rows(columns, options, is_list=bool(lengths), num=max(lengths, default=1))

    def _check_results(self, values: Values, num_rows: int) -> None:
        """Refuse results that would occupy the computing thread too long."""
        per_row = {"lists": 1, "top": 1, "rerank": self.num_reranked(values)}
        if num_rows > 1:
            per_row["top"] = values.get("top") or 1
        for name, value in values.items():
            if isinstance(value, dict):  # prompts, each of which is compared with every row
                texts_of_values = [texts for texts in value.values() if isinstance(texts, list)]
                per_row[name] = sum(map(len, texts_of_values))
        name, most = max(per_row.items(), key=lambda item: item[1])
        if num_rows * most > MOST_RESULTS:
            raise RequestRefusedError(
                400,
                f"{name}: {num_rows} × {most} results are asked for, "
                f"at most {MOST_RESULTS:,} at a time",
            )

    def _compute_each(self, arguments: Sequence[Values]) -> list[Any]:
        return [self.call(**values) for values in arguments]

    def _compute_together(self, arguments: Sequence[Rows]) -> list[Any]:
        """Return the results of several clients with the same options."""
        first = arguments[0]
        if len(arguments) == 1:
            return [self.call(**first.columns, **first.options)]
        columns: dict[str, list[Any]] = {name: [] for name in first.columns}
        for rows in arguments:
            for name, value in rows.columns.items():
                columns[name] += value if isinstance(value, list) else [value] * rows.num
        results = self.call(**columns, **first.options)
        results_of_clients = []
        start = 0
        for rows in arguments:
            end = start + rows.num
            results_of_clients.append(results[start:end] if rows.is_list else results[start])
            start = end
        return results_of_clients

    def form(self) -> dict[str, Any] | None:
        """Return the call's form for the page: title, fields with label, kind, example.

        None without a title.
        """
        if not self.request.title:
            return None
        fields = []
        for name, form in self.inputs.items():
            field = self.fields[name]
            fields.append(
                {
                    "name": name,
                    "label": re.split("[,;:.]", field.text)[0],
                    "kind": form.kind,
                    "required": field.is_required,
                    "example": self.request.examples.get(name, ""),
                }
            )
        return {"title": self.request.title, "fields": fields}

    def as_json(self, result: Any) -> bytes:
        """Return a result as JSON.

        Dataclasses become objects, images base64 PNG, other arrays lists.
        """
        if hasattr(result, "overlays"):
            result = {**result.values(), "images": list(result.overlays())}
        if self.request is not Search:
            result = {"result": result}
        # JSON has no infinity and no NaN
        return to_json(result, inf_nan_mode="null", fallback=_without_arrays)


def _lengths(columns: Values) -> list[int]:
    return [len(value) for value in columns.values() if isinstance(value, list)]


def _check_lengths(rows: Rows) -> None:
    """Refuse lists of different lengths."""
    lengths = sorted(set(_lengths(rows.columns)))
    if len(lengths) > 1:
        numbers = " and ".join(map(str, lengths))
        message = f"lists of {numbers}: give lists of equal length, or one for all"
        raise RequestRefusedError(400, message)


def _without_arrays(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 3:
        return image_text(value)
    return value.tolist()


def endpoints_of(eve: Eve, limits: Limits) -> dict[str, Endpoint]:
    """Return the endpoints of a run by the names of their calls."""
    # experts of `reference` routing drop tokens of rows that others crowd out
    is_exact = getattr(eve.run.config.model, "routing", "dropless") != "reference"
    endpoints = {}
    for name in eve.calls:
        request = REQUESTS[name] if name in ALWAYS else eve.predictor.requests()[name]
        call = getattr(eve, name)
        if "batch_size" in inspect.signature(call).parameters:
            call = functools.partial(call, batch_size=limits.batch)
        endpoints[name] = Endpoint(
            request=request,
            call=call,
            limits=limits,
            sizes=eve.run.config.input,
            by_rows=is_exact and request.by_rows,
        )
    return endpoints
