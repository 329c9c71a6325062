"""Logits over labels for other programs.

Letters: B batch, C classes.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from eve_vl.tasks.heads import Graph, Heads


class ClassifierHeads(Heads):
    """Logits over labels, or over the truth of a statement."""

    name: ClassVar[str] = "classifier"
    """Name of the exported file."""
    has_sigmoids: ClassVar[bool] = False
    """Whether each logit is a probability of its own; also with the task's `multilabel`."""

    def __init__(self, task: Any):
        super().__init__(task)
        self.class_names = task.class_names

    def graphs(self) -> dict[str, Graph]:
        """Return the graphs of the encoders and of the classifier."""
        task = self.task
        logits = ", ".join(self.class_names).lower()
        if task.labels_file:
            logits = f"one per label of {task.labels_file}"
        probability = "their softmax is the"
        if self.has_sigmoids or getattr(task.settings, "multilabel", False):
            probability = "the sigmoid of each is its"
        meaning = f"{logits}; {probability} probability"
        graphs = super().graphs()
        graphs[self.name] = Graph(
            task.reads, "logits", meaning, lambda *tensors: task.logits(*tensors)[0]
        )
        return graphs

    def outputs(self, tensors: Mapping[str, Tensor], labels: Tensor | None) -> dict[str, Tensor]:
        """Return `logits` (B, C) and with labels the `loss`.

        Labels are those that the task's `loss` takes. `pixels` may be those of the left image.
        """
        task = self.task
        inputs = [tensors["pixels" if name == "left" else name] for name in task.reads]
        logits_BC, routers = task.logits(*inputs)
        if labels is None:
            return {"logits": logits_BC}
        losses = {task.section.name: task.loss(logits_BC, labels)}
        return {"loss": task.output(losses, routers).loss, "logits": logits_BC}
