"""Fields of requests, for any interface: the command line, Python, HTTP and the page."""

import dataclasses
import functools
import inspect
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from eve_vl.utils.frozen import Frozen

FIELD_WITH_DOCSTRING = re.compile(r'^\s+(\w+): .*\n\s+"""((?s:.*?))"""', re.MULTILINE)


class FieldForm(Frozen):
    """A mark of a field that Python and HTTP take in other forms than the command line."""

    kind: Literal["image", "text", "prompts"]
    several: bool = False
    """Whether a list is accepted."""
    is_shown: bool = False
    """Whether the result shows the image, so that the server keeps more than the run's square of
    it."""


Images = Annotated[Path, FieldForm(kind="image", several=True)]
Texts = Annotated[str, FieldForm(kind="text", several=True)]
Text = Annotated[str, FieldForm(kind="text")]
ShownImage = Annotated[Path, FieldForm(kind="image", is_shown=True)]
Prompts = Annotated[str, FieldForm(kind="prompts")]


class Field(Frozen):
    """A field of a request."""

    name: str
    hint: Any
    """Its type, without the marks of the command line."""
    form: FieldForm | None
    default: Any
    """dataclasses.MISSING: it is required."""
    text: str
    """Its docstring."""

    @property
    def is_required(self) -> bool:
        """Whether it must be given."""
        return self.default is dataclasses.MISSING


@functools.cache
def fields_of(request: type) -> dict[str, Field]:
    """Return the fields of a request by name."""
    marked_types = typing.get_type_hints(request, include_extras=True)
    plain_types = typing.get_type_hints(request)
    docstrings = _docstrings_of_fields(request)
    fields = {}
    for field in dataclasses.fields(request):
        fields[field.name] = Field(
            name=field.name,
            hint=plain_types[field.name],
            form=next(_forms(marked_types[field.name]), None),
            default=field.default,
            text=docstrings.get(field.name, ""),
        )
    return fields


def _docstrings_of_fields(request: type) -> dict[str, str]:
    """Return the strings below the fields of a request and of its bases, each on one line."""
    docstrings = {}
    for base in reversed(request.__mro__):
        if dataclasses.is_dataclass(base):
            for name, text in FIELD_WITH_DOCSTRING.findall(inspect.getsource(base)):
                docstrings[name] = " ".join(text.split())
    return docstrings


def _forms(hint: Any) -> Iterator[FieldForm]:
    """Yield the marks of a type. Annotated may lie in a union that is annotated itself."""
    for mark in getattr(hint, "__metadata__", ()):
        if isinstance(mark, FieldForm):
            yield mark
    for part in typing.get_args(hint):
        yield from _forms(part)
