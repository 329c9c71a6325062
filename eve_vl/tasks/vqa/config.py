"""The section of visual question answering."""

from pathlib import Path
from typing import ClassVar

from eve_vl.config import TaskConfig
from eve_vl.config.sections import Count


class VQAConfig(TaskConfig):
    """Visual question answering as classification over an answer list.

    See [paper] "Downstream Tasks".
    """

    name: ClassVar[str] = "vqa"
    title: ClassVar[str] = "visual question answering"
    small_recipe: ClassVar[str] = "questions_small"
    of_pairs: ClassVar[tuple[str, ...]] = ("name",)
    answers: Path | None = None
    """Answer list: a JSON list, one answer a line, or BEiT-3's answer2label.txt; default: built
    from the training data."""
    min_answer_count: Count = 9
    """Training questions that an answer of a built list needs."""

    def problems(self) -> list[str]:
        """Return the problems of values that do not go together, one sentence each."""
        has_minimum = self.min_answer_count != VQAConfig.min_answer_count
        if self.answers is not None and has_minimum:
            return ["min_answer_count has no effect with an answer list (answers)"]
        return []
