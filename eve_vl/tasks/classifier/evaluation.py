"""What evaluations of classifiers share: predictions, ablations, prediction files."""

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
"""Descriptions of ablations, after `better than …`."""
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
        predictions = []
        for batch in loader:
            predictions.extend(self.predict_batch(batch))
        of_all_processes = []
        for part in gather_objects(predictions):
            of_all_processes.extend(part)
        return sorted(of_all_processes, key=self.order)


def json_lines(predictions: Sequence[Any], line: Callable[[Any], Mapping[str, Any]]) -> str:
    """Return a JSON line for each prediction.

    Lines are in the order of the sources and their rows. Each holds the number of its source and
    the row's position there, both from 0, before the values of `line`.
    """
    lines = []
    for prediction in sorted(predictions, key=lambda prediction: prediction.position):
        source, position = prediction.position
        names = {"source": source, "position": position, "row": prediction.where}
        lines.append(json.dumps({**names, **line(prediction)}) + "\n")
    return "".join(lines)
