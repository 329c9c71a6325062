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

from tyro.conf import Positional

from eve_vl.utils.frozen import Frozen

if typing.TYPE_CHECKING:
    import numpy as np

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


class Answer(Request):
    """Answer a question about an image: eve answer RUN IMAGE "QUESTION".

    Returns the best answers of the run's list, best first, each with its probability of being right. Several answers may be
    right. Lists of images and questions are answered row by row.
    """

    name, key, title, by_rows = "answer", "answers", "Ask", True
    examples: ClassVar[Mapping[str, str]] = {"question": "what is this"}
    image: Positional[Images]
    """Image."""
    question: Positional[Texts]
    """Question."""
    top: int = 5
    """Number of answers to show."""


class Verify(Request):
    """Tell whether a statement is true: eve verify RUN LEFT RIGHT "STATEMENT".

    The statement is about two images. Lists are answered row by row.
    """

    name, title, by_rows = "verify", "Verify", True
    examples: ClassVar[Mapping[str, str]] = {"statement": "both images show the same thing"}
    left: Positional[Images]
    """Left image."""
    right: Positional[Images]
    """Right image."""
    statement: Positional[Texts]
    """Statement about the two images."""


class Same(Request):
    """Tell whether two items are the same: eve same RUN LEFT "TEXT" RIGHT "TEXT".

    Each item is an image with a text. Lists are answered row by row.
    """

    name, title, by_rows = "same", "Same item", True
    left: Positional[Images]
    """Left image."""
    left_text: Positional[Texts]
    """Text of the left item."""
    right: Positional[Images]
    """Right image."""
    right_text: Positional[Texts]
    """Text of the right item."""


class Classify(Request):
    """Label an image, a text or both: eve classify RUN IMAGE --text "TEXT".

    Returns the most probable labels, best first. Lists are answered row by row.
    """

    name, key, title, by_rows = "classify", "labels", "Classify", True
    image: Positional[Images | None] = None
    """Image, for a run that reads images."""
    text: Texts | None = None
    """Text, for a run that reads texts."""
    top: int = 5
    """Number of labels to show."""


class Match(Request):
    """Tell how likely an image and a text belong together: eve match RUN IMAGE "TEXT".

    Lists of n images and m texts give float32 (n, m). The value compares pairs; it is no calibrated probability. Two of three
    training pairs were wrong and hard to tell from true ones, and a run with task.itm_loss learned to rank only.
    """

    name, key, title = "match", "probability", "Match"
    examples: ClassVar[Mapping[str, str]] = {"text": "what the image may show"}
    image: Positional[Images]
    """Image."""
    text: Positional[Texts]
    """Text that may describe it."""

    @classmethod
    def lines(cls, result: Any) -> str:
        """Return the probability."""
        return f"{result:.4f}"


class ZeroShot(Request):
    """Classify an image by captions: eve zero-shot RUN IMAGE PROMPTS.json.

    Nothing is trained for the classes. Returns the best classes, best first. Scores are cosines of features, or log-odds of a
    match where the run has a matching head only. Several images are answered row by row.
    """

    name, key, title, by_rows = "zero_shot", "classes", "Compare labels", True
    examples: ClassVar[Mapping[str, str]] = {
        "prompts": "animal: a dog; a cat\nplant: a tree; a flower"
    }
    image: Positional[Images]
    """Image."""
    prompts: Positional[Prompts]
    """Prompts of each class: {"class": ["text", …], …}, or a JSON file of them, or `phantoms` (built in)."""
    by: Literal["mean", "max"] = "mean"
    """Whether a class scores the mean or the maximum of its prompts."""
    top: int = 5
    """Number of classes to show."""


class FillMask(Request):
    """Guess the tokens behind [MASK]: eve fill-mask RUN IMAGE "a [MASK] circle".

    All masks of a caption are guessed at once. Lists are answered row by row.
    """

    name, title, by_rows = "fill_mask", "Fill in", True
    examples: ClassVar[Mapping[str, str]] = {"text": "a drawing of a [MASK]"}
    image: Positional[Images]
    """Image."""
    text: Positional[Texts]
    """Caption with one or more [MASK]."""
    top: int = 5
    """Number of guesses to show for each [MASK]."""


class Reconstruct(Request):
    """Mask and reconstruct patches: eve reconstruct RUN IMAGE "CAPTION".

    Where targets were normalised per patch, each masked patch gets its true mean and contrast.
    """

    name, has_json, image_file = "reconstruct", False, "reconstruct.png"
    image: Positional[ShownImage]
    """Image."""
    text: Positional[Text]
    """Its caption."""
    share: float | None = None
    """Share of patches to mask; default: task.image_mask_ratio."""
    keep: tuple[int, ...] | None = None
    """Patches to keep instead, counted from 0 row by row."""
    seed: int = 0
    """Seed for the choice of masked patches."""

    @classmethod
    def shown_images(cls, result: Any) -> Sequence["np.ndarray"]:
        """Return the three images side by side."""
        return [result.original, result.masked, result.reconstructed]


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
