"""The base class of the sections of tasks."""

from collections.abc import Mapping
from typing import Any, ClassVar

from eve_vl.config.sections import Section
from eve_vl.utils.frozen import Frozen


class EvaluationFlags(Frozen):
    """Values of a task's section that evaluation can override; None: the run's own."""


class TaskConfig(Section):
    """A training objective."""

    title: ClassVar[str]
    """Name for people."""
    is_pretraining: ClassVar[bool] = False
    """Whether `eve pretrain` trains it, rather than `eve finetune`."""
    has_numbers: ClassVar[bool] = True
    """Whether `eve evaluate` can measure it."""
    recipe: ClassVar[str] = ""
    """Recipe that fine-tunes it, if none has its name."""
    small_recipe: ClassVar[str] = ""
    """Recipe that fine-tunes a run on small images with the user's own data."""
    evaluation: ClassVar[type[EvaluationFlags]] = EvaluationFlags
    """Its flags of `eve evaluate`."""
    alone: ClassVar[Mapping[str, str]] = {}
    """Modalities of rows besides pairs that it takes, each with the weight of the loss that they do
    not allow."""
    augments_captions: ClassVar[bool] = False
    """Whether data.caption_augment applies: its texts are captions that it does not need whole."""
    of_pairs: ClassVar[tuple[str, ...]] = ()
    """Fields that, unless they are 0, need states of pairs, which a backbone may lack."""

    def reads_pairs(self) -> tuple[str, ...]:
        """Return the fields whose values need states of pairs."""
        return tuple(name for name in self.of_pairs if getattr(self, name))

    def starting_from(self, init: Any) -> "TaskConfig":
        """Return this section for a run that starts from another run with the config `init`."""
        return self

    def problems_with_rows(self, rows: str) -> list[str]:
        """Return the problems of training on rows of a `data.modality`, one sentence each."""
        if rows == "image_text":
            return []
        if rows not in self.alone:
            problem = f"name {self.name} does not train on data.modality {rows}"
            return [f"{problem}; leave it at image_text"]
        weight_name = self.alone[rows]
        weight = getattr(self, weight_name)
        if not weight:
            return []
        return [f"{weight_name} {weight:g}, but data.modality is {rows}: set it to 0"]

    def problems_with_pairs(self, num_pairs: int) -> list[str]:
        """Return the problems of a micro-batch of num_pairs, one sentence each."""
        return []

    def problems_with_model(self, model: Any) -> list[str]:
        """Return the problems of this task with a model section, one sentence each."""
        return []
