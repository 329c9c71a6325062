"""The section of statements about two images."""

from typing import ClassVar, Literal

from eve_vl.config import TaskConfig


class NLVR2Config(TaskConfig):
    """Truth of a statement about two images ([paper] "Downstream Tasks")."""

    name: ClassVar[str] = "nlvr2"
    title: ClassVar[str] = "statements about two images (NLVR2)"
    small_recipe: ClassVar[str] = "statements_small"
    of_pairs: ClassVar[tuple[str, ...]] = ("name",)
    head: Literal["concat", "paired", "compare"] = "concat"
    """concat: the two text [CLS] states side by side. paired: each side attends to the other first
    (UNITER). compare: the two standardised states, their distance and their product (InferSent),
    with which small models learn soonest."""
    second_image_type_embedding: bool = False
    """Give the right image its own type embedding, initialised with the left one's."""
