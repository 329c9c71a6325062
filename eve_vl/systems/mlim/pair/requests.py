"""The call of runs that compare two items."""

from tyro.conf import Positional

from eve_vl.predict.request_fields import Images, Texts
from eve_vl.predict.requests import Request


class Same(Request):
    """Tell whether two items are the same: eve same RUN LEFT "TEXT" RIGHT "TEXT".

    Each item is an image with a text. Lists are answered row by row.
    """

    name = "same"
    title = "Same item"
    by_rows = True
    left: Positional[Images]
    """Left image."""
    left_text: Positional[Texts]
    """Text of the left item."""
    right: Positional[Images]
    """Right image."""
    right_text: Positional[Texts]
    """Text of the right item."""
