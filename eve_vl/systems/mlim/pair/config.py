"""The section of the comparison of two items."""

from typing import Any, ClassVar

from eve_vl.config import DualEncoderConfig
from eve_vl.config.task import TaskConfig


class PairConfig(TaskConfig):
    """Whether two items, each an image with a text, are the same (MLIM)."""

    name: ClassVar[str] = "pair"
    title: ClassVar[str] = "pairs of items"
    recipe: ClassVar[str] = "mlim_pairs"
    modality_dropout: bool = True
    """In training show both images only, both texts only, or both items whole, each for a third of
    the pairs (MLIM)."""

    def problems_with_model(self, model: Any) -> list[str]:
        """Return the problem of states with other widths for pairs than for one modality."""
        if not isinstance(model, DualEncoderConfig):
            return []
        return [
            "name pair compares whole items and single modalities, "
            "whose states have different widths in two towers"
        ]
