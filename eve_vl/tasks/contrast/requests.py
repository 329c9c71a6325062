"""The calls of runs with comparable features or a matching head."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from tyro.conf import Positional

from eve_vl.predict.request_fields import Images, Prompts, Texts
from eve_vl.predict.requests import Request


class Match(Request):
    """Tell how likely an image and a text belong together: eve match RUN IMAGE "TEXT".

    Lists of n images and m texts give float32 (n, m). The value compares pairs; it is no calibrated
    probability. Two of three training pairs were wrong and hard to tell from true ones, and a run
    with task.itm_loss learned to rank only.
    """

    name = "match"
    key = "probability"
    title = "Match"
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

    Nothing is trained for the classes. Returns the best classes, best first. Scores are cosines of
    features, or log-odds of a match where the run has a matching head only. Several images are
    answered row by row.
    """

    name = "zero_shot"
    key = "classes"
    title = "Compare labels"
    by_rows = True
    examples: ClassVar[Mapping[str, str]] = {
        "prompts": "animal: a dog; a cat\nplant: a tree; a flower"
    }
    image: Positional[Images]
    """Image."""
    prompts: Positional[Prompts]
    """Prompts of each class: {"class": ["text", …], …}, or a JSON file of them, or `phantoms`
    (built in)."""
    by: Literal["mean", "max"] = "mean"
    """Whether a class scores the mean or the maximum of its prompts."""
    top: int = 5
    """Number of classes to show."""
