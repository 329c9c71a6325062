"""Options of a search."""

from collections.abc import Mapping
from pathlib import Path

from eve_vl.utils.errors import UserError, nearest
from eve_vl.utils.frozen import Frozen

BY = ("both", "words", "vectors")


class SearchOptions(Frozen):
    """Options of a search. Raises UserError for a number that is too small."""

    by: str = "both"
    """How to search for a text: by the `words` of captions, file names and columns, by `vectors`,
    or by `both`."""
    min_score: float = 0.0
    """Least `fit` of an image without the query's words, 0 to 1."""
    captions: bool = False
    """Whether to search captions instead of images."""
    top: int = 20
    """Number of hits."""
    rerank: int | None = None
    """Candidates that the matching head orders again, for a text that searches images or an image
    that searches captions; 0: none; default: as validation chose for the run."""
    folder: str | Path | None = None
    """Only images in this folder."""
    where: Mapping[str, str] | None = None
    """Only images of rows in which these columns have these values."""

    def __post_init__(self):
        if self.top < 1:
            raise UserError(f"top {self.top} is not positive")
        if (self.rerank or 0) < 0:
            raise UserError(f"rerank {self.rerank} is negative")
        if self.by not in BY:
            raise UserError(f"by {nearest(self.by, BY)}")
        has_fit = not self.captions and self.by != "words"
        if not has_fit and self.min_score != 0:
            fix = "only images found by vectors have a fit"
            raise UserError(f"min_score {self.min_score} has no effect; {fix}")
        if not 0 <= self.min_score <= 1:
            fix = "give a number from 0 to 1"
            raise UserError(f"min_score {self.min_score} has no effect; {fix}")

    @property
    def is_filtered(self) -> bool:
        """Whether a folder or values of columns are asked for."""
        return self.folder is not None or bool(self.where)
