"""From the signature of a Python call to what is taken over HTTP, and to how OpenAPI shows it.

Images are base64 text, texts are texts, numbers are numbers. What would be a file on the server is never taken: of an
argument whose type has `Path`, a text would name one, and is taken only where the call keeps the two apart (`Texts`).
"""

import inspect
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from eve_vl.predict.inputs import Texts
from eve_vl.serve.limits import MAX_LENGTH, MAX_VALUES, Limits, RequestRefusedError
from eve_vl.utils.errors import nearest

OWN = ("batch_size", "progress")  # arguments that the server decides on
LARGEST = 2**63 - 1
WORDS = {int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}
TEXT = f"a text of at most {MAX_LENGTH:,} letters"
GIVEN = {dict: "an object", list: "a list"} | WORDS

Kind = Literal["square", "whole", "text", "value"]


@dataclass(frozen=True, kw_only=True)
class Argument:
    """An argument as it is served."""

    name: str
    kind: Kind
    """square: images that are only seen as the run's square; whole: images that are shown."""
    several: bool
    """Whether a list may be given, of which each item is a row."""
    hint: Any
    """Its type in the body."""
    default: Any
    expected: str
    """In words."""


def arguments(call: Callable[..., Any], limits: Limits, instead: Mapping[str, Any]) -> dict[str, Argument] | None:
    """Return the arguments of a call by name; None if one without a default cannot be sent.

    instead: types to take for some arguments.
    """
    found = {}
    for parameter, annotation in _parameters(call):
        needed = parameter.default is inspect.Parameter.empty
        if parameter.name in OWN:
            continue
        argument = _argument(parameter.name, instead.get(parameter.name, annotation), parameter.default, limits)
        if argument is not None:
            found[parameter.name] = argument
        elif needed:
            return None
    return found


def body_model(name: str, given: Mapping[str, Argument]) -> type[BaseModel]:
    """Return the model of a call's body."""
    empty = inspect.Parameter.empty
    fields: dict[str, Any] = {
        argument.name: (
            argument.hint,
            Field(... if argument.default is empty else argument.default, description=argument.expected),
        )
        for argument in given.values()
    }
    return create_model(name, __config__=ConfigDict(extra="forbid", strict=True, allow_inf_nan=False), **fields)


def parsed(model: type[BaseModel], given: Mapping[str, Argument], body: bytes) -> dict[str, Any]:
    """Return the arguments that a body holds, with the defaults of those that it leaves out. Raises RefusedError."""
    if sum(map(body.count, (b",", b"[", b"{"))) > MAX_VALUES:  # base64 has none of these, and small values take 100 bytes each
        raise RequestRefusedError(400, f"the body has more than {MAX_VALUES:,} commas and brackets; send fewer values")
    try:
        return {name: value for name, value in model.model_validate_json(body) if name in given}
    except ValidationError as error:
        errors = error.errors(include_url=False, include_context=False)
    # of an image or a list of images either is said to be wrong: what lies deeper is what was meant
    first = max((each for each in errors if each["loc"][:1] == errors[0]["loc"][:1]), key=lambda each: len(each["loc"]))
    kind, place, value = first["type"], first["loc"], first["input"]
    if not place:
        reason = first["msg"].removeprefix("Invalid JSON: ") if kind == "json_invalid" else f"got {_said(value)}"
        raise RequestRefusedError(400, f"the body is no JSON object ({reason}); send the arguments as one: {', '.join(given)}")
    name = str(place[0])
    if kind == "extra_forbidden":
        raise RequestRefusedError(400, f"no argument {nearest(name, given)}")
    expected = given[name].expected
    if kind == "missing":
        raise RequestRefusedError(400, f"{name} is missing: expected {expected}")
    where = name + "".join(f" {part}" for part in place[1:] if isinstance(part, int))
    raise RequestRefusedError(400, f"{where}: got {_said(value)}, expected {expected}")


def _said(value: Any) -> str:
    """Return what a JSON value is, in words."""
    if isinstance(value, list):
        return f"a list of {len(value):,}"
    if isinstance(value, str):
        return f"a text of {len(value):,} letters" if len(value) > 40 else f"the text {value!r}"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)[:40]
    return GIVEN.get(type(value), "something else")


def _parameters(call: Callable[..., Any]) -> Iterator[tuple[inspect.Parameter, Any]]:
    """Yield the parameters of a method and their types; in the place of `**options` those of the method that it overrides."""
    hints = typing.get_type_hints(call)
    names = set()
    for parameter in inspect.signature(call).parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            owner = getattr(call, "__self__", None)
            methods = [vars(cls)[call.__name__] for cls in type(owner).__mro__ if call.__name__ in vars(cls)]
            if above := methods[methods.index(getattr(call, "__func__", None)) + 1 :] if methods else []:
                yield from ((p, h) for p, h in _parameters(types.MethodType(above[0], owner)) if p.name not in names)
        elif parameter.kind is not inspect.Parameter.VAR_POSITIONAL:
            names.add(parameter.name)
            yield parameter, hints.get(parameter.name, Any)


def _leaves(annotation: Any) -> list[Any]:
    if get_origin(annotation) in (typing.Union, types.UnionType):
        return [leaf for part in get_args(annotation) for leaf in _leaves(part)]
    return [annotation]


def _argument(name: str, annotation: Any, default: Any, limits: Limits) -> Argument | None:
    leaves = _leaves(annotation)
    lists = [leaf for leaf in leaves if get_origin(leaf) in (Iterable, Sequence, list, tuple)]
    items = [leaf for one in lists for leaf in _leaves(get_args(one)[0])]
    kind, several = "value", False
    if bytes in leaves:
        image = Annotated[str, Field(min_length=1)]
        several, hint, expected = bytes in items, image, "an image as base64 text"
        kind = "square" if any(get_origin(one) is Iterable for one in lists) else "whole"  # rows, or all that is asked about
        most = limits.items if kind == "square" else 2
    elif annotation == Texts or (str in leaves and Path not in leaves and str in items):
        kind, several, hint, expected, most = "text", True, _text(), TEXT, limits.items
    else:
        leaves = [leaf for leaf in leaves if leaf is not Path and not (leaf is str and Path in leaves)]
        parts = [(part, words) for part, words in (_value(leaf, limits) for leaf in leaves) if words]
        if not any(part is not type(None) for part, _ in parts):
            return None
        hint = _any_of(*(part for part, _ in parts))
        return Argument(
            name=name, kind=kind, several=False, hint=hint, default=default, expected=" or ".join(words for _, words in parts)
        )
    if several:
        hint, expected = (
            _any_of(hint, Annotated[list[hint], Field(max_length=most)]),
            f"{expected}, or a list of at most {most}",
        )
    if type(None) in leaves:
        hint, expected = _any_of(hint, None), f"{expected}, or null"
    return Argument(name=name, kind=kind, several=several, hint=hint, default=default, expected=expected)


def _any_of(*hints: Any) -> Any:
    return Union[hints]  # noqa: UP007 (types with bounds know no |)


def _text() -> Any:
    return Annotated[str, Field(max_length=MAX_LENGTH)]


def _value(leaf: Any, limits: Limits) -> tuple[Any, str]:
    """Return the type that a value has in the body and what it is in words, none if it cannot be sent."""
    origin, parts = get_origin(leaf), get_args(leaf)
    if leaf is int:
        return Annotated[int, Field(ge=-LARGEST, le=LARGEST)], WORDS[int]
    if leaf is str:
        return _text(), TEXT
    if leaf in WORDS:
        return leaf, WORDS[leaf]
    if origin is Annotated:  # of `instead`, with bounds of its own
        bounds = {
            key: getattr(each, key)
            for field in parts[1:]
            for each in field.metadata
            for key in vars(type(each)).get("__slots__", ())
        }
        return leaf, f"{WORDS[parts[0]]} from {bounds['ge']} to {bounds['le']}"
    if origin is Literal:
        return leaf, f"one of {', '.join(map(str, parts))}"
    if origin in (Sequence, Iterable, list):
        item, words = _value(parts[0], limits)
        return Annotated[list[item], Field(max_length=MAX_LENGTH)], words and f"a list of at most {MAX_LENGTH:,}, each {words}"
    if origin in (Mapping, dict):
        some = f"an object of at most {limits.items} entries as"
        if parts[1] is str:
            return Annotated[dict[str, _text()], Field(max_length=limits.items)], f'{some} {{"name": "text"}}, {TEXT}'
        texts = Annotated[list[_text()], Field(max_length=limits.items)]
        return Annotated[dict[str, texts], Field(max_length=limits.items)], f'{some} {{"name": ["text", …]}}, {TEXT}'
    return None, ""
