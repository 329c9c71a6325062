"""What evaluations of classifiers share: predictions, ablations, prediction files."""

import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, TypeVar

import torch

from eve_vl.tasks.classifier.task import Classifier
from eve_vl.tasks.evaluator import Evaluator, How
from eve_vl.train.processes import gather_objects

AnyClassifier = TypeVar("AnyClassifier", bound=Classifier[Any])


ABLATED = {
    "noise": "looking at noise",
    "wrong_image": "looking at a wrong image",
    "image_only": "not reading the text",
}


ABLATIONS: dict[str, tuple[How, ...]] = {
    "image": ("noise",),
    "text": (),
    "both": ("noise", "wrong_image", "image_only"),
}
"""By task.inputs."""


class Prediction(SimpleNamespace):
    """Fields of a row that are no tensors, and the model's output for it.

    The fields are those of `RowBatch.rows`; each evaluator names its outputs.
    """

    name: str = ""
    position: tuple[int, int] = (0, 0)


class ClassifierEvaluator(Evaluator[AnyClassifier]):
    """The evaluation of a task whose head gives each row logits."""

    def predict_batch(self, batch: Any) -> list[Any]:
        """Return the predictions for the rows of a batch."""
        raise NotImplementedError

    def order(self, prediction: Any) -> Any:
        """Return the sort key of a prediction."""
        return prediction.where

    @torch.no_grad()
    def predict_all(self, loader: Iterable[Any]) -> list[Any]:
        """Return the predictions for the rows of all processes, sorted by `order`."""
        own = [prediction for batch in loader for prediction in self.predict_batch(batch)]
        return sorted(itertools.chain(*gather_objects(own)), key=self.order)


def json_lines(predictions: Sequence[Any], line: Callable[[Any], Mapping[str, Any]]) -> str:
    """Return a JSON line for each prediction.

    Lines are in the order of the sources and their rows. Each holds the number of its source and the row's position there, both
    from 0, before the values of `line`.
    """
    rows = sorted(predictions, key=lambda each: each.position)
    named = (
        {"source": each.position[0], "position": each.position[1], "row": each.where}
        for each in rows
    )
    return "".join(
        json.dumps({**names, **line(each)}) + "\n" for names, each in zip(named, rows, strict=True)
    )
