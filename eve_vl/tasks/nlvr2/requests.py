"""The call of runs that judge statements."""

from collections.abc import Mapping
from typing import ClassVar

from tyro.conf import Positional

from eve_vl.predict.request_fields import Images, Texts
from eve_vl.predict.requests import Request


class Verify(Request):
    """Tell whether a statement is true: eve verify RUN LEFT RIGHT "STATEMENT".

    The statement is about two images. Lists are answered row by row.
    """

    name = "verify"
    title = "Verify"
    by_rows = True
    examples: ClassVar[Mapping[str, str]] = {"statement": "both images show the same thing"}
    left: Positional[Images]
    """Left image."""
    right: Positional[Images]
    """Right image."""
    statement: Positional[Texts]
    """Statement about the two images."""
