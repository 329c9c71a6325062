"""One dataclass per call of a run.

Each defines the verb, HTTP body, Python signature, docs and page form of its call. To add a call, define a request here and a
method of its `name` in a predictor. Imports no torch, because the command line lists all calls.
"""

import dataclasses
import functools
import inspect
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
from tyro.conf import Positional

from eve_vl.utils.frozen import Frozen

FIELD = re.compile(
    r'^\s+(\w+): .*\n\s+"""((?s:.*?))"""', re.MULTILINE
)  # of a dataclass, with its docstring


class Given(Frozen):
    """A field that Python and HTTP take in other forms than the command line."""

    kind: Literal["image", "text", "prompts"]
    several: bool = False
    """Whether a list is accepted."""
    is_shown: bool = False
    """Whether the result shows the image, so that the server keeps more than the run's square of it."""


Images = Annotated[Path, Given(kind="image", several=True)]


Texts = Annotated[str, Given(kind="text", several=True)]


Text = Annotated[str, Given(kind="text")]


ShownImage = Annotated[Path, Given(kind="image", is_shown=True)]


Prompts = Annotated[str, Given(kind="prompts")]


class Request(Frozen):
    """Arguments of a call.

    The docstring's first line is its help, fields are its flags.
    """

    name: ClassVar[str]
    """Name of the call in Python and over HTTP; the verb has dashes."""
    key: ClassVar[str] = ""
    """Name of the result in JSON, if it is a list or a number; by default the call's."""
    title: ClassVar[str] = ""
    """Name of its tab on the page; "": the page has no form."""
    examples: ClassVar[Mapping[str, str]] = {}
    """Example values of text fields, which the page shows if the run has no examples of its own."""
    by_rows: ClassVar[bool] = False
    """Whether lists are answered row by row, so that requests of several clients can share a batch."""
    has_json: ClassVar[bool] = True
    """Whether `--json` can write the result."""
    image_file: ClassVar[str] = ""
    """Default file of `--out`, for results that are images."""

    @classmethod
    def about(cls) -> str:
        """Return the docstring; its first line is the help in lists."""
        return inspect.cleandoc(cls.__doc__ or "")

    @classmethod
    def lines(cls, result: Any) -> str:
        """Return a result as lines for the terminal."""
        return "\n".join(map(str, result)) if isinstance(result, list) else str(result)

    @classmethod
    def values(cls, result: Any) -> dict[str, Any]:
        """Return a result as values for the file of `--json`.

        Pixels of images are left out.
        """
        if dataclasses.is_dataclass(result):
            return result.values() if hasattr(result, "overlays") else dataclasses.asdict(result)  # pyright: ignore
        rows = [dataclasses.asdict(each) for each in result] if isinstance(result, list) else result
        return {cls.key or cls.name: rows}

    @classmethod
    def shown_images(cls, result: Any) -> Sequence["np.ndarray"]:
        """Return the images of a result, uint8 (H, W, 3)."""
        return result.overlays()


class Explain(Request):
    """Show what supports the answer: eve explain RUN IMAGE "TEXT" --word star.

    The heatmap is a Grad-CAM. A fine-tuned run explains its answer, label (of a statement "true") or match; a pre-trained run
    explains a masked word. In the last block the heads read [CLS] only (except NLVR2's paired head), so no other token's
    attention matters there.
    """

    name, image_file = "explain", "heatmap.png"
    image: Positional[Annotated[Path, Given(kind="image", several=True, is_shown=True)]]
    """Image; the left one for a statement."""
    text: Positional[str] = ""
    """Question, statement or caption; none for a run that reads images only."""
    right: ShownImage | None = None
    """Right image of a statement."""
    word: str | None = None
    """Word or phrase of the text whose attention is shown; default: all tokens; "[CLS]": the text's [CLS]. A pre-trained run
    needs a word, which it masks."""
    answer: str | None = None
    """Answer or label to explain; default: the run's own."""
    block: int | None = None
    """Block whose attention is shown, 0 for the first, -1 for the last; default: the one that points best (LOG.md)."""


class Experts(Request):
    """Show the experts of patches and tokens: eve experts RUN IMAGE "TEXT".

    Routing depends on what tokens attend to: give the image, the text, or both for the pass over the pair. Nothing is masked.
    With model.routing reference, second choices are sampled.
    """

    name, image_file = "experts", "experts.png"
    image: Positional[ShownImage | None] = None
    """Image."""
    text: Positional[Text] = ""
    """Text."""


class Field(NamedTuple):
    """A field of a request, for any interface."""

    name: str
    hint: Any
    """Its type, without the marks of the command line."""
    given: Given | None
    default: Any
    """dataclasses.MISSING: it is required."""
    text: str
    """Its docstring."""

    @property
    def is_required(self) -> bool:
        """Whether it must be given."""
        return self.default is dataclasses.MISSING


@functools.cache
def fields_of(request: type[Request]) -> dict[str, Field]:
    """Return the fields of a request by name."""
    marked, plain = (
        typing.get_type_hints(request, include_extras=True),
        typing.get_type_hints(request),
    )
    kinds = [cls for cls in reversed(request.__mro__) if dataclasses.is_dataclass(cls)]
    texts = {
        name: " ".join(text.split())
        for cls in kinds
        for name, text in FIELD.findall(inspect.getsource(cls))
    }
    return {
        name: Field(
            name, plain[name], next(_marks(marked[name]), None), each.default, texts.get(name, "")
        )
        for name, each in ((each.name, each) for each in dataclasses.fields(request))
    }


def _marks(hint: Any) -> Iterator[Given]:
    """Yield the marks of a type.

    Annotated may lie in a union that is annotated itself.
    """
    yield from (mark for mark in getattr(hint, "__metadata__", ()) if isinstance(mark, Given))
    for part in typing.get_args(hint):
        yield from _marks(part)
