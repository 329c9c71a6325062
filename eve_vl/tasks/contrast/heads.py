"""Comparable features and the matching head for other programs."""

from eve_vl.tasks.heads import Graph, Heads
from eve_vl.tasks.task import PAIR


class ContrastHeads(Heads):
    """Comparable features and a matching head."""

    def graphs(self) -> dict[str, Graph]:
        """Return the graphs of the encoders and of the matching head."""
        task = self.task
        if task.contrast.match_head is None:
            return super().graphs()
        order = "the second alone"
        if task.orders_by_sum:
            order = (
                "the second less the first plus the features' dot product over "
                f"{task.contrast.features.temperature:.6g}"
            )
        meaning = (
            f"no match, match; their softmax is the probability; {order} puts candidates in order"
        )
        graphs = super().graphs()
        graphs["matcher"] = Graph(PAIR, "logits", meaning, lambda *pair: task.match(*pair)[0])
        return graphs
