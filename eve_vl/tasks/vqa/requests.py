"""The call of runs that answer questions."""

from collections.abc import Mapping
from typing import ClassVar

from tyro.conf import Positional

from eve_vl.predict.request_fields import Images, Texts
from eve_vl.predict.requests import Request


class Answer(Request):
    """Answer a question about an image: eve answer RUN IMAGE "QUESTION".

    Returns the best answers of the run's list, best first, each with its probability of being
    right. Several answers may be right. Lists of images and questions are answered row by row.
    """

    name = "answer"
    key = "answers"
    title = "Ask"
    by_rows = True
    examples: ClassVar[Mapping[str, str]] = {"question": "what is this"}
    image: Positional[Images]
    """Image."""
    question: Positional[Texts]
    """Question."""
    top: int = 5
    """Number of answers to show."""
