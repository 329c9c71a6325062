"""The section of classification."""

from pathlib import Path
from typing import ClassVar, Literal

from eve_vl.config import TaskConfig


class ClassificationConfig(TaskConfig):
    """Classification of images, texts or both, with one label or several."""

    name: ClassVar[str] = "classification"
    title: ClassVar[str] = "classification"
    small_recipe: ClassVar[str] = "labels_small"
    inputs: Literal["image", "text", "both"] = "image"
    """Model input; rows may hold more."""
    multilabel: bool = False
    """Rows may have several labels, each a binary decision."""
    classes: Path | None = None
    """Label list: a JSON list or one a line; default: the labels of the training data."""

    def reads_pairs(self) -> tuple[str, ...]:
        """Return what is read, if it is both."""
        return ("inputs",) if self.inputs == "both" else ()
