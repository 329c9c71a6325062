"""One dataclass per call of a run.

Each defines the verb, HTTP body, Python signature, docs and page form of its call. A task's calls
are in its folder. To add a call, define a request and a method of its `name` in a predictor.
Imports no torch, because the command line lists all calls.
"""

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from tyro.conf import Positional

from eve_vl.config import TaskConfig
from eve_vl.config.kinds import all_kinds, kinds_of
from eve_vl.predict.request_fields import FieldForm, ShownImage, Text
from eve_vl.utils.frozen import Frozen


class Request(Frozen):
    """Arguments of a call. The docstring's first line is its help, fields are its flags."""

    name: ClassVar[str]
    """Name of the call in Python and over HTTP; the verb has dashes."""
    key: ClassVar[str] = ""
    """Name of the result in JSON, if it is a list or a number; by default the call's."""
    title: ClassVar[str] = ""
    """Name of its tab on the page; "": the page has no form."""
    examples: ClassVar[Mapping[str, str]] = {}
    """Example values of text fields, which the page shows if the run has no examples of its own."""
    by_rows: ClassVar[bool] = False
    """Whether lists are answered row by row, so that requests of several clients can share a
    batch."""
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
        rows = result if isinstance(result, list) else [result]
        return "\n".join(map(str, rows))

    @classmethod
    def values(cls, result: Any) -> dict[str, Any]:
        """Return a result as values for the file of `--json`. Pixels of images are left out."""
        if dataclasses.is_dataclass(result):
            if hasattr(result, "overlays"):
                return result.values()  # pyright: ignore[reportAttributeAccessIssue]
            return dataclasses.asdict(result)  # pyright: ignore[reportArgumentType]
        if isinstance(result, list):
            result = [dataclasses.asdict(row) for row in result]
        return {cls.key or cls.name: result}

    @classmethod
    def shown_images(cls, result: Any) -> Sequence["np.ndarray"]:
        """Return the images of a result, uint8 (H, W, 3)."""
        return result.overlays()


class Explain(Request):
    """Show what supports the answer: eve explain RUN IMAGE "TEXT" --word star.

    The heatmap is a Grad-CAM. A fine-tuned run explains its answer, label (of a statement "true")
    or match; a pre-trained run explains a masked word. In the last block the heads read [CLS] only
    (except NLVR2's paired head), so no other token's attention matters there.
    """

    name = "explain"
    image_file = "heatmap.png"
    image: Positional[Annotated[Path, FieldForm(kind="image", several=True, is_shown=True)]]
    """Image; the left one for a statement."""
    text: Positional[str] = ""
    """Question, statement or caption; none for a run that reads images only."""
    right: ShownImage | None = None
    """Right image of a statement."""
    word: str | None = None
    """Word or phrase of the text whose attention is shown; default: all tokens; "[CLS]": the text's
    [CLS]. A pre-trained run needs a word, which it masks."""
    answer: str | None = None
    """Answer or label to explain; default: the run's own."""
    block: int | None = None
    """Block whose attention is shown, 0 for the first, -1 for the last; default: the one that
    points best (LOG.md)."""


class Experts(Request):
    """Show the experts of patches and tokens: eve experts RUN IMAGE "TEXT".

    Routing depends on what tokens attend to: give the image, the text, or both for the pass over
    the pair. Nothing is masked. With model.routing reference, second choices are sampled.
    """

    name = "experts"
    image_file = "experts.png"
    image: Positional[ShownImage | None] = None
    """Image."""
    text: Positional[Text] = ""
    """Text."""


def known_requests() -> dict[str, type[Request]]:
    """Return the requests of all tasks by name, then those that every task may have."""
    all_kinds(TaskConfig, "tasks")  # imports the tasks' sections and requests
    requests = kinds_of(Request)
    for request in (Explain, Experts):
        requests[request.name] = requests.pop(request.name)
    return requests
