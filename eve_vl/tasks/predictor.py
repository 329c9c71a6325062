"""Calls of the runs of a task: a method for each request, found by the section of the task.

Letters: C classes.
"""

import inspect
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from eve_vl.config import TaskConfig
from eve_vl.config.kinds import class_for, load_part
from eve_vl.predict.expert_map import ExpertMap, expert_map, mixtures
from eve_vl.predict.gradcam import Evidence
from eve_vl.predict.heatmap import CLS, Heatmap, heatmap, word_positions
from eve_vl.predict.inputs import Inputs
from eve_vl.predict.request_fields import Field, fields_of
from eve_vl.predict.requests import Experts, Explain, Request, known_requests
from eve_vl.predict.user_images import ImageLike, Images, UserImage, user_image, user_images
from eve_vl.predict.user_texts import Strings, user_text
from eve_vl.tasks.run import Run
from eve_vl.utils.console import pluralize
from eve_vl.utils.errors import UserError


class Predictor:
    """Calls of the runs of one task; a method answers the request of its name.

    All compute in float32 and in evaluation mode.
    """

    section: ClassVar[type[TaskConfig]] = TaskConfig
    """Section of the task, and of tasks below it that have no predictor of their own."""
    num_images: ClassVar[int] = 1
    """Images per text."""

    def __init__(self, task: Any, inputs: Inputs):
        self.task = task
        self.inputs = inputs

    @classmethod
    def requests(cls) -> dict[str, type[Request]]:
        """Return the requests that it can answer for some run, by name. `explain` needs an
        `_evidence` of its own."""
        can_explain = cls._evidence is not Predictor._evidence
        requests = {}
        for name, request in known_requests().items():
            if hasattr(cls, name) and (name != "explain" or can_explain):
                requests[name] = request
        return requests

    def offered(self) -> tuple[str, ...]:
        """Return the calls that the run's heads allow, by default all that the task has."""
        return tuple(name for name in self.requests() if name != "experts")

    def calls(self) -> tuple[str, ...]:
        """Return the calls that the run allows: those `offered`, and `experts` if it has
        experts."""
        if mixtures(self.task.encoder):
            return (*self.offered(), "experts")
        return self.offered()

    def how_to_get(self, call: str) -> str | None:
        """Return how to train a run of this task that allows a call; None if no run of it does."""
        return None

    def call(self, name: str) -> Callable[..., Any]:
        """Return a call as a Python function of the fields of its request."""
        request = self.requests()[name]
        method = getattr(self, name)
        fields = fields_of(request)
        parameters = [python_parameter(field) for field in fields.values()]
        batch_size = inspect.signature(method).parameters.get("batch_size")
        if batch_size is not None:
            parameters.append(batch_size)
        signature = inspect.Signature(parameters)

        def function(*args: Any, **keywords: Any) -> Any:
            values = signature.bind(*args, **keywords).arguments
            options = {}
            if "batch_size" in values:
                options["batch_size"] = values.pop("batch_size")
            for field_name, value in values.items():
                require_type(name, fields[field_name], value)
            return method(request(**values), **options)

        lines = [f"{field.name}: {field.text}" for field in fields.values()]
        function.__name__ = name
        function.__doc__ = "\n".join([request.about(), "", *lines])
        function.__signature__ = signature  # pyright: ignore[reportFunctionMemberAccess]
        return function

    def explain(self, request: Explain) -> Heatmap:
        """Return where in the image the run finds evidence. Raises UserError."""
        images = user_images(request.image)
        text = user_text(request.text)
        if request.right is not None:
            images += user_images(request.right)
        if len(images) != self.num_images:
            takes = pluralize(self.num_images, "image")
            raise UserError(
                f"explain: a run of task {self.task.section.name} takes {takes} "
                f"({len(images)} given); give {self.num_images}"
            )
        if request.answer is not None and self.task.labels_file is None:
            raise UserError(
                "explain: answer has no effect with a run that has no answers or labels; leave "
                "it out"
            )
        positions = word_positions(self.inputs, text, request.word)
        names_word = request.word not in (None, CLS)
        evidence = self._evidence(images, text, positions if names_word else None, request.answer)
        return heatmap(
            self.task, evidence, images, positions, word=request.word, block=request.block
        )

    @torch.no_grad()
    def experts(self, request: Experts) -> ExpertMap:
        """Return which experts each patch and token goes to. Raises UserError."""
        if request.image is None and not request.text:
            raise UserError("experts: give an image, a text or both")
        image = None if request.image is None else user_image(request.image)
        text = user_text(request.text) if request.text else ""
        return expert_map(self.task, self.inputs, image, text)

    def _evidence(
        self, images: list[UserImage], text: str, positions: list[int] | None, answer: str | None
    ) -> Evidence:
        """Return the score that `explain` differentiates. positions: tokens of the word, if the
        request names one."""
        raise NotImplementedError

    def _label_evidence(
        self, logits: Callable[[Any], Tensor], label: int | None, label_noun: str
    ) -> Evidence:
        """Return the evidence for a label; None: the label with the highest logit. label_noun:
        name of labels in messages."""
        if label is None:
            with torch.no_grad():
                label = int(logits(self.task).argmax())
        return Evidence(
            logits=logits,
            classes=[label],
            words=f'the {label_noun} "{self.task.sizes.labels[label]}"',
            is_one_of_many=not self.task.is_multilabel,
        )


def predictor_class(section: type[TaskConfig]) -> type[Predictor]:
    """Return the predictor of a task's section, or of the nearest section above it."""
    load_part(section, "predictor")
    return class_for(Predictor, section) or Predictor


def predictor_of(run: Run) -> Predictor:
    """Return the predictor of a loaded run."""
    inputs = Inputs(run.config.input, run.tokenizer, run.device)
    return predictor_class(run.task.section)(run.task, inputs)


def python_parameter(field: Field) -> inspect.Parameter:
    """Return a field of a request as a parameter of its Python function."""
    hint = field.hint
    if field.form is not None:
        image_type = Images if field.form.several else ImageLike
        hint = {"image": image_type, "text": Strings, "prompts": Any}[field.form.kind]
        if field.default is None:
            hint = hint | None
    default = inspect.Parameter.empty if field.is_required else field.default
    return inspect.Parameter(
        field.name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=hint
    )


def require_type(call: str, field: Field, value: Any) -> None:
    """Raise UserError if a whole number is expected and another type is given; images and texts
    check themselves."""
    if field.hint is int and type(value) is not int:
        raise UserError(f"{call}: {field.name} {value!r} is no whole number; give one such as 3")


def best_classes(probability_C: Tensor, top: int) -> list[tuple[int, float]]:
    """Return the most probable classes, best first. Raises UserError if `top` is not positive."""
    if top < 1:
        raise UserError(f"top {top} is not positive")
    values, classes = probability_C.topk(min(top, len(probability_C)))
    return list(zip(classes.tolist(), values.tolist(), strict=True))
