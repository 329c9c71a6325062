"""The images of a search, with everything that their rows say about them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from eve_vl.config import DataConfig
from eve_vl.data.generated import GeneratedSource, is_generated
from eve_vl.data.kinds.captions import ImageText
from eve_vl.data.records import Source, fetched
from eve_vl.data.row_dataset import eval_positions
from eve_vl.data.row_hashes import image_key
from eve_vl.train.evaluation_batches import unusable_row_error
from eve_vl.utils.errors import BadSampleError


@dataclass
class CandidateImage:
    """An image to search among. Several rows of a source may show it."""

    source: Source[ImageText]
    row: int
    """Its first row."""
    captions: list[str] = field(default_factory=list)
    """The captions of all its rows, in the order of the data."""
    true_captions: set[str] = field(default_factory=set)
    """Its captions and, for generated scenes, those that are true but not written down."""

    @property
    def is_generated(self) -> bool:
        """Whether code draws it."""
        return is_generated(self.source)

    def false_captions(self) -> list[str]:
        """Return hard false captions, which only generated scenes have."""
        if not self.captions or not isinstance(self.source, GeneratedSource):
            return []
        return self.source.distractors(self.row)


def read_candidate_images(
    sources: Sequence[Source[ImageText]], data: DataConfig
) -> list[CandidateImage]:
    """Return the distinct images of at most `data.val_samples` rows, in the order of the data.

    An unusable row is a candidate without captions: evaluation reads it again and counts it.
    Raises UserError for it if the config does not leave out unusable rows.
    """
    rows_of_source: list[list[int]] = [[] for _ in sources]
    for _, number, row in eval_positions([len(source) for source in sources], data.val_samples):
        rows_of_source[number].append(row)

    images = []
    image_of_key: dict[int, CandidateImage] = {}
    for source, rows in zip(sources, rows_of_source, strict=True):
        for row in fetched(source, rows):
            try:
                pair = source[row]
            except BadSampleError as error:
                if not data.skips_invalid_val:
                    raise unusable_row_error(error) from None
                images.append(CandidateImage(source, row))
                continue
            key = image_key(pair.image, pair.where)
            if key not in image_of_key:
                image_of_key[key] = CandidateImage(source, row)
                images.append(image_of_key[key])
            image_of_key[key].captions.extend(pair.captions)
            image_of_key[key].true_captions.update(true_captions(source, row, pair))
    return images


def true_captions(source: Source[ImageText], row: int, pair: ImageText) -> Sequence[str]:
    """Return all captions known to be true of a row's image."""
    captions = None
    if isinstance(source, GeneratedSource):
        captions = source.true_captions(row)
    return pair.captions if captions is None else captions
