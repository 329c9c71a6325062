"""What people can ask of a run: each task has a subclass of `Calls`, with a method for each call of `Eve`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from tyro.conf import Positional

from eve_vl.config import TaskConfig, define, subclasses
from eve_vl.model.probes import mixtures
from eve_vl.predict.expert_map import ExpertMap, routes_of
from eve_vl.predict.gradcam import CLS, Evidence, Heatmap, heatmap, word_positions
from eve_vl.predict.inputs import GivenImage, ImageLike, Inputs, chunked, given_image, given_images, given_text, listed
from eve_vl.utils.errors import UserError

MODULES = ("contrastive", "masked_signal", "classifiers")  # files of this package that define predictors


@dataclass(frozen=True, kw_only=True)
class Command:
    """A call as a verb of the command line."""

    flags: type
    """A dataclass whose fields are the call's arguments; `out` and `json` are files to write."""
    show: Callable[[Any], str] = str
    """Lines for people, of the result."""
    values: Callable[[Any], dict[str, Any]] = lambda _: {}
    """The result as JSON values."""
    images: Callable[[Any], Sequence[np.ndarray]] | None = None
    """The result as images to write side by side."""
    rows: bool = False
    """Whether lists are answered row by row (`in_batches`), so that rows of several people can be computed together."""


@dataclass(frozen=True, kw_only=True)
class JsonFlags:
    """What calls take whose result can be numbers."""

    json: Path | None = None
    """Also write the result to this file."""


@dataclass(frozen=True, kw_only=True)
class ImageFlags:
    """What calls take that are about one image."""

    image: Positional[Path]
    """Image file."""


@dataclass(frozen=True, kw_only=True)
class ExplainFlags(JsonFlags):
    """Flags of `eve explain`."""

    image: Positional[Path]
    """Image file; of a statement, the left one."""
    text: Positional[str] = ""
    """Question, statement or caption; none for a run that reads images alone."""
    right: Path | None = None
    """Of a statement: the image on the right."""
    word: str | None = None
    """Word or phrase of the text whose attention is shown; default: the whole text. A pre-trained run needs one, to hide."""
    answer: str | None = None
    """An answer or class to look for; default: the run's own."""
    block: int | None = None
    """Block whose attention is shown, 0 for the first, -1 for the last; default: the one that points best."""
    out: Path = Path("look.png")
    """Image to write: the image under its heat map, blue to red."""


@dataclass(frozen=True, kw_only=True)
class ExpertsFlags(JsonFlags):
    """Flags of `eve experts`."""

    image: Positional[Path | None] = None
    """Image file."""
    text: Positional[str] = ""
    """Text; of an image without one, the image's own tokens alone."""
    out: Path = Path("route.png")
    """Image to write: for each block with experts the patches, and the words below, in the colours of their experts."""


class Predictor:
    """What a run of a task does for people, in float32 and in evaluation mode. Its methods without an underscore that
    `offered` names are calls of `Eve`."""

    section: ClassVar[type[TaskConfig]] = TaskConfig
    """Section of the task whose runs it serves, and of tasks below it that have no predictor of their own."""
    verbs: ClassVar[dict[str, Command]] = {
        "explain": Command(flags=ExplainFlags, values=Heatmap.values, images=Heatmap.overlays),
        "experts": Command(flags=ExpertsFlags, values=ExpertMap.values, images=ExpertMap.overlays),
    }
    num_images: ClassVar[int] = 1
    """Images that a text is about."""

    def __init__(self, task: Any, inputs: Inputs):
        self.task, self.inputs = task, inputs

    def offered(self) -> tuple[str, ...]:
        """Return the calls that the run's heads allow, besides `encode_image` and `encode_text`; default: all of a task that
        has some of its own."""
        return tuple(call for call in self.verbs if call != "experts") if self.task.section.calls else ()

    def everything(self) -> tuple[str, ...]:
        """Return what is `offered` and, of a run with experts, `route`."""
        return (*self.offered(), "experts") if "experts" in self.verbs and mixtures(self.task.encoder) else self.offered()

    def how_to_get(self, call: str) -> str | None:
        """Return how to train a run of this task that allows a call that this one's heads do not; None if none would."""
        return None

    def explain(
        self,
        image: ImageLike | Sequence[ImageLike],
        text: str = "",
        *,
        right: ImageLike | None = None,
        word: str | None = None,
        answer: str | None = None,
        block: int | None = None,
    ) -> Heatmap:
        """Return where in the image a run finds what speaks for its answer or class, for a statement being true (give both
        images), for the match or, pre-trained, for a word of the text that is hidden from it.

        word: a word or phrase of the text, the first time it occurs, whose tokens' attention to the patches is shown; None:
        that of all tokens together; "[CLS]": the text [CLS]'s alone. answer: another answer or class than the one that the run
        gives. block: 0 is the first, -1 the last; None: the last for a hidden word, else the last but one, which point best at
        what is asked about (LOG.md). In the last block the heads read [CLS] alone (all but the paired head of NLVR2), so no
        other token's attention matters there. Raises UserError.
        """
        images, text = given_images(image), given_text(text)
        images += [] if right is None else given_images(right)
        wanted = self.num_images
        if len(images) != wanted:
            raise UserError(
                f"a run of task {self.task.section.name} looks at {wanted} image{'s'[: wanted - 1]}, {len(images)} given"
            )
        positions = word_positions(self.inputs, text, word)
        if answer is not None and self.task.labels_file is None:
            raise UserError("an answer to look for can be given to a run with answers or classes only")
        evidence = self._evidence(images, text, None if word in (None, CLS) else positions, answer)
        return heatmap(self.task, evidence, images, positions, word=word, block=block)

    @torch.no_grad()
    def experts(self, image: ImageLike | None = None, text: str = "") -> ExpertMap:
        """Return which experts each patch of an image and each token of a text go to, in every block that has experts.

        What tokens see decides where they go: give the image, the text or, for the pair's pass, both. Nothing is hidden. Of a
        run of model.routing reference, second choices are drawn at random. Raises UserError.
        """
        if image is None and not text:
            raise UserError("experts: give an image, a text or both")
        return routes_of(self.task, self.inputs, None if image is None else given_image(image), text and given_text(text))

    def _evidence(self, images: list[GivenImage], text: str, positions: list[int] | None, answer: str | None) -> Evidence:
        """Return what `look` shows the evidence for. positions: tokens of the word, if there is one."""
        raise NotImplementedError

    def _label_evidence(
        self, logits: Callable[[Any], Tensor], chosen: int | None, what: str, *, is_one_of_many: bool
    ) -> Evidence:
        """Return the evidence for a label, what people call it in `what`; None: the one with the highest logit."""
        if chosen is None:
            with torch.no_grad():
                chosen = int(logits(self.task).argmax())
        words = f'the {what} "{self.task.sizes.labels[chosen]}"'
        return Evidence(logits=logits, classes=[chosen], words=words, is_one_of_many=is_one_of_many)


def predictor_class(section: type[TaskConfig]) -> type[Predictor]:
    """Return the predictor of a task's section, or of the nearest section above it."""
    for name in MODULES:
        define(__package__ or "", name)
    known = {vars(kind)["section"]: kind for kind in (Predictor, *subclasses(Predictor)) if "section" in vars(kind)}
    return next(known[above] for above in section.__mro__ if above in known)


def best_classes(probability_C: Tensor, top: int) -> list[tuple[int, float]]:
    """Return the classes of the highest probabilities, best first. Raises UserError if `top` is not positive."""
    if top < 1:
        raise UserError(f"top {top} is not positive")
    values, classes = probability_C.topk(min(top, len(probability_C)))
    return list(zip(classes.tolist(), values.tolist(), strict=True))


def in_batches(compute: Callable[..., Sequence[Any]], batch_size: int, *given: tuple[Callable[..., Any], Any]) -> Any:
    """Return what `compute` makes of lists of inputs, called with at most `batch_size` rows at a time, as one list; what was
    given alone goes with every row, and if all was, its one result is returned.

    given: each input and how to read one or several of it. Raises UserError for lists of different lengths.
    """
    columns = [(read(value), listed(value) is not None) for read, value in given]
    lengths = {len(items) for items, are_several in columns if are_several}
    if len(lengths) > 1:
        raise UserError(f"lists of {' and '.join(map(str, sorted(lengths)))} given: give lists of equal length, or one for all")
    num = max(lengths, default=1)
    rows = zip(*(items if are_several else items * num for items, are_several in columns), strict=True)
    results = [result for chunk in chunked(rows, batch_size) for result in compute(*zip(*chunk, strict=True))]
    return results if lengths else results[0]
