"""What predictors share: a method for each call, found by the section of the task.

Letters: C classes.
"""

import inspect
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from eve_vl.config import TaskConfig
from eve_vl.config.kinds import class_for, kinds_of, load_part
from eve_vl.predict.expert_map import ExpertMap, expert_map, mixtures
from eve_vl.predict.heatmap import CLS, Evidence, Heatmap, heatmap, word_positions
from eve_vl.predict.inputs import (
    GivenImage,
    ImageLike,
    Images,
    Inputs,
    Strings,
    given_image,
    given_images,
    given_text,
)
from eve_vl.predict.requests import Experts, Explain, Field, Request, fields_of
from eve_vl.tasks.run import Run
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
        self.task, self.inputs = task, inputs

    @classmethod
    def requests(cls) -> dict[str, type[Request]]:
        """Return the requests that it can answer for some run, by name.

        `explain` needs an `_evidence` of its own.
        """
        lacking = "explain" if cls._evidence is Predictor._evidence else ""
        return {
            name: request
            for name, request in kinds_of(Request).items()
            if hasattr(cls, name) and name != lacking
        }

    def offered(self) -> tuple[str, ...]:
        """Return the calls that the run's heads allow.

        Default: all, if the task has one of its own.
        """
        return tuple(name for name in self.requests() if name != "experts")

    def calls(self) -> tuple[str, ...]:
        """Return the calls that the run allows.

        They are `offered`, and `experts` if it has experts.
        """
        return (*self.offered(), *["experts"] * bool(mixtures(self.task.encoder)))

    def how_to_get(self, call: str) -> str | None:
        """Return how to train a run of this task that allows a call.

        None if no run of it does.
        """
        return None

    def call(self, name: str) -> Callable[..., Any]:
        """Return a call as a Python function of the fields of its request."""
        request, method = self.requests()[name], getattr(self, name)
        parameters = [python_parameter(field) for field in fields_of(request).values()]
        size = inspect.signature(method).parameters.get("batch_size")
        signature = inspect.Signature([*parameters, size] if size else parameters)

        def function(*args: Any, **options: Any) -> Any:
            given = signature.bind(*args, **options).arguments
            own = {"batch_size": given.pop("batch_size")} if "batch_size" in given else {}
            return method(request(**given), **own)

        arguments = "\n".join(
            f"{field.name}: {field.text}" for field in fields_of(request).values()
        )
        function.__name__, function.__doc__ = name, f"{request.about()}\n\n{arguments}"
        function.__signature__ = signature  # pyright: ignore[reportFunctionMemberAccess]
        return function

    def explain(self, asked: Explain) -> Heatmap:
        """Return where in the image the run finds evidence. Raises UserError."""
        images, text = given_images(asked.image), given_text(asked.text)
        images += [] if asked.right is None else given_images(asked.right)
        wanted = self.num_images
        if len(images) != wanted:
            takes = (
                f"a run of task {self.task.section.name} takes {wanted} image{'s'[: wanted - 1]}"
            )
            raise UserError(f"explain: {takes} ({len(images)} given); give {wanted}")
        positions = word_positions(self.inputs, text, asked.word)
        if asked.answer is not None and self.task.labels_file is None:
            raise UserError(
                "explain: answer has no effect with a run that has no answers or labels; leave it out"
            )
        evidence = self._evidence(
            images, text, None if asked.word in (None, CLS) else positions, asked.answer
        )
        return heatmap(self.task, evidence, images, positions, word=asked.word, block=asked.block)

    @torch.no_grad()
    def experts(self, asked: Experts) -> ExpertMap:
        """Return which experts each patch and token goes to. Raises UserError."""
        if asked.image is None and not asked.text:
            raise UserError("experts: give an image, a text or both")
        image = None if asked.image is None else given_image(asked.image)
        return expert_map(self.task, self.inputs, image, asked.text and given_text(asked.text))

    def _evidence(
        self, images: list[GivenImage], text: str, positions: list[int] | None, answer: str | None
    ) -> Evidence:
        """Return the score that `explain` differentiates.

        positions: tokens of the word, if one is given.
        """
        raise NotImplementedError

    def _label_evidence(
        self, logits: Callable[[Any], Tensor], chosen: int | None, what: str
    ) -> Evidence:
        """Return the evidence for a label; None: the label with the highest logit.

        what: name of labels in messages.
        """
        if chosen is None:
            with torch.no_grad():
                chosen = int(logits(self.task).argmax())
        words = f'the {what} "{self.task.sizes.labels[chosen]}"'
        return Evidence(
            logits=logits, classes=[chosen], words=words, is_one_of_many=not self.task.is_multilabel
        )


def predictor_class(section: type[TaskConfig]) -> type[Predictor]:
    """Return the predictor of a task's section, or of the nearest section above it."""
    load_part(section, "predictor")
    return class_for(Predictor, section) or Predictor


def predictor_of(run: Run) -> Predictor:
    """Return the predictor of a loaded run."""
    return predictor_class(run.task.section)(
        run.task, Inputs(run.config.input, run.tokenizer, run.device)
    )


def python_parameter(field: Field) -> inspect.Parameter:
    """Return a field of a request as a parameter of its Python function."""
    hint = field.hint
    if field.given is not None:
        hint = {
            "image": Images if field.given.several else ImageLike,
            "text": Strings,
            "prompts": Any,
        }[field.given.kind]
        hint = hint | None if field.default is None else hint
    default = inspect.Parameter.empty if field.is_required else field.default
    return inspect.Parameter(
        field.name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=hint
    )


def best_classes(probability_C: Tensor, top: int) -> list[tuple[int, float]]:
    """Return the most probable classes, best first.

    Raises UserError if `top` is not positive.
    """
    if top < 1:
        raise UserError(f"top {top} is not positive")
    values, classes = probability_C.topk(min(top, len(probability_C)))
    return list(zip(classes.tolist(), values.tolist(), strict=True))
