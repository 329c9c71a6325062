"""The call of runs that label rows."""

from tyro.conf import Positional

from eve_vl.predict.request_fields import Images, Texts
from eve_vl.predict.requests import Request


class Classify(Request):
    """Label an image, a text or both: eve classify RUN IMAGE --text "TEXT".

    Returns the most probable labels, best first. Lists are answered row by row.
    """

    name = "classify"
    key = "labels"
    title = "Classify"
    by_rows = True
    image: Positional[Images | None] = None
    """Image, for a run that reads images."""
    text: Texts | None = None
    """Text, for a run that reads texts."""
    top: int = 5
    """Number of labels to show."""
