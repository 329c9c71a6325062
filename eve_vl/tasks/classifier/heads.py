"""Logits over labels for other programs."""

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
        multilabel = self.has_sigmoids or getattr(task.settings, "multilabel", False)
        logits = (
            f"one per label of {task.labels_file}"
            if task.labels_file
            else ", ".join(self.class_names).lower()
        )
        meaning = f"{logits}; {'the sigmoid of each is its' if multilabel else 'their softmax is the'} probability"
        return super().graphs() | {
            self.name: Graph(task.reads, "logits", meaning, lambda *given: task.logits(*given)[0])
        }

    def outputs(self, tensors: Mapping[str, Tensor], labels: Tensor | None) -> dict[str, Tensor]:
        """Return `logits` (B, C) and with labels the `loss`.

        Labels are those that the task's `loss` takes. `pixels` may be those of the left image.
        """
        task = self.task
        logits_BC, routers = task.logits(
            *(tensors["pixels" if name == "left" else name] for name in task.reads)
        )
        if labels is None:
            return {"logits": logits_BC}
        return {
            "loss": task.output({task.section.name: task.loss(logits_BC, labels)}, routers).loss,
            "logits": logits_BC,
        }
