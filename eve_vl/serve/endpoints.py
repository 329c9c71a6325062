"""A call of a run as it is served: from a body to a job, and from what the job gives to JSON."""

import functools
import inspect
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from eve_vl.eve import ALWAYS, Eve
from eve_vl.predict.inputs import GivenImage
from eve_vl.serve.batching import Job
from eve_vl.serve.codecs import as_json, decoded, image
from eve_vl.serve.limits import MOST_RESULTS, Limits, RequestRefusedError
from eve_vl.serve.schema import Argument, arguments, body_model, parsed


class Endpoint:
    """A call of `Eve` or the search in an index."""

    def __init__(
        self,
        name: str,
        call: Callable[..., Any],
        given: Mapping[str, Argument],
        limits: Limits,
        *,
        image_size: int,
        by_rows: bool = False,
        is_crossed: bool = False,
        num_reranked: Callable[[Mapping[str, Any]], int] = lambda _: 0,
        show: Callable[[Any], Any] = as_json,
    ):
        """by_rows: whether lists are answered row by row, so that those of several clients can be put together. is_crossed:
        whether instead each item of a list is answered with each of another. num_reranked: how many hits of a row are ranked
        again, at most. show: the result as JSON values."""
        takes_size = "batch_size" in inspect.signature(call).parameters
        self.call = functools.partial(call, batch_size=limits.batch) if takes_size else call
        self.name, self.arguments, self.limits, self.show = name, given, limits, show
        self.image_size, self.by_rows, self.is_crossed, self.num_reranked = image_size, by_rows, is_crossed, num_reranked
        self.model = body_model(f"{name}_arguments", given)
        self.text = inspect.cleandoc(call.__doc__ or "")

    def prepare(self, body: bytes) -> tuple[Job, int]:
        """Return the job that a body asks for, and how many bytes it holds: images decoded, the rest at its length in the
        body. Raises RefusedError or UserError."""
        given = parsed(self.model, self.arguments, body)
        images = {
            name: self._images(name, value)
            for name, value in given.items()
            if value is not None and self.arguments[name].kind in ("square", "whole")
        }
        self._check_pixels([pixels for each in images.values() for _, pixels in each])
        values, size = dict(given), len(body)
        for name, each in images.items():
            square = self.image_size if self.arguments[name].kind == "square" else None
            found = [decoded(image, square) for image, _ in each]
            values[name] = found if isinstance(given[name], list) else found[0]
            size += sum(one.pixels.nbytes for one in found) - sum(map(len, listed(given[name])))
        rows = {name: value for name, value in values.items() if self.arguments[name].several and value is not None}
        each = [len(value) for value in rows.values() if isinstance(value, list)]
        lengths, num = {*each}, math.prod(each) if self.is_crossed else max(each, default=1)
        self._check_results(values, num)
        if not self.by_rows:
            return Job(compute=lambda given: [self.call(**each) for each in given], given=values), size
        if len(lengths) > 1:
            raise RequestRefusedError(
                400, f"lists of {' and '.join(map(str, sorted(lengths)))}: give lists of equal length, or one for all"
            )
        options = {name: value for name, value in values.items() if name not in rows}
        key = id(self), *sorted(rows), json.dumps(options, sort_keys=True)
        return Job(compute=self._together, given=(rows, options, bool(lengths), num), key=key, rows=num), size

    def _images(self, name: str, value: Any) -> list[tuple[GivenImage, int]]:
        """Return the images of an argument and how many pixels each has."""
        if not isinstance(value, list):
            return [image(value, name, self.limits)]
        return [image(one, f"{name} {number}", self.limits) for number, one in enumerate(value)]

    def _check_pixels(self, pixels: list[int]) -> None:
        """Raise RefusedError for images that would keep a thread, which decodes for others too, for too long."""
        most = self.limits.pixels
        if sum(pixels) > most:
            found = f"{len(pixels)} images have {sum(pixels):,} pixels together, at most {most:,} are accepted in a request"
            raise RequestRefusedError(400, f"{found}; send fewer, or smaller ones")

    def _check_results(self, values: Mapping[str, Any], rows: int) -> None:
        """Raise RefusedError for what would keep the thread that computes, for all, for too long."""
        each = {"lists": 1, "top": values.get("top") or 1 if rows > 1 else 1, "rerank": self.num_reranked(values)}
        for name, value in values.items():
            if isinstance(value, dict):  # of texts, with each of which a row is compared
                each[name] = sum(len(texts) for texts in value.values() if isinstance(texts, list))
        name, most = max(each.items(), key=lambda item: item[1])
        if rows * most > MOST_RESULTS:
            raise RequestRefusedError(400, f"{name}: {rows} × {most} results are asked for, at most {MOST_RESULTS:,} at a time")

    def _together(self, given: Sequence[tuple[dict[str, Any], dict[str, Any], bool, int]]) -> list[Any]:
        """Return the results of several clients, whose options are the same."""
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


def listed(value: Any) -> Sequence[Any]:
    """Return a list of what may be one."""
    return value if isinstance(value, list) else [value]


def served_calls(eve: Eve, limits: Limits) -> dict[str, Endpoint]:
    """Return the calls of a run that can be served, by name: those whose arguments can be sent."""
    config, found = eve.run.config, {}
    is_exact = (
        getattr(config.model, "routing", "dropless") != "reference"
    )  # its experts drop tokens of rows that others crowd out
    for name in eve.calls:
        call, verb = getattr(eve, name), eve.run.predictor.verbs.get(name)
        if (given := arguments(call, limits, {})) is None:
            continue
        can_be_listed = all(argument.several for argument in given.values() if argument.kind != "value")
        by_rows = is_exact and can_be_listed and (name in ALWAYS or (verb is not None and verb.rows))
        more: dict[str, Any] = {"is_crossed": verb is not None and not verb.rows, "show": _shown_by(verb)}
        found[name] = Endpoint(name, call, given, limits, image_size=config.input.image_size, by_rows=by_rows, **more)
    return found


def _shown_by(verb: Any) -> Callable[[Any], Any]:
    """Return how to show results: those that say what they are in JSON (`values`) by that, with their images."""

    def show(result: Any) -> Any:
        if verb is None or verb.images is None or not hasattr(result, "values"):
            return as_json(result)
        return as_json({**verb.values(result), "images": list(verb.images(result))})

    return show
