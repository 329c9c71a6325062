"""Heads of each task for other programs: ONNX graphs, transformers outputs.

Letters: B batch, I images, C classes or captions, T text tokens, N all tokens, V vocabulary, D width, d width of features.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from eve_vl import config as sections
from eve_vl import objectives
from eve_vl.config import class_for, define
from eve_vl.data.kinds.captions import CaptionBatch
from eve_vl.model import Encoded
from eve_vl.tasks import task_class
from eve_vl.tasks.task import PAIR, Task
from eve_vl.utils.errors import UserError

IGNORED = -100  # label of a token that is not masked, as everywhere in transformers


class Graph(NamedTuple):
    """A function of tensors that a run exports, for programs without torch."""

    inputs: tuple[str, ...]
    """The arguments of `compute` in order: pixels, left, right (uint8, (B, 3, H, W)), ids (int64, (B, T)), is_padding (bool,
    (B, T)), right_ids and right_is_padding."""
    output: str
    meaning: str
    compute: Callable[..., Tensor]


class Heads:
    """Heads of one task, none by default.

    A subclass belongs to the tasks of its `section`.
    """

    section: ClassVar[type[sections.TaskConfig]]
    missing: str | None = None
    """Description of the head that `outputs` needs and this run lacks."""
    class_names: tuple[str, ...] = ()
    """Names of the columns of its logits, unless the run has a list of labels."""

    def __init__(self, task: Any):
        self.task = task

    def graphs(self) -> dict[str, Graph]:
        """Return the graphs to export, by the name of the file."""
        task = self.task
        meaning = "of length 1; their dot product says how alike two are"
        meaning += "" if task.is_comparable else "; an image and a text do not compare"
        return {
            "image_encoder": Graph(PAIR[:1], "features", meaning, task.image_features),
            "text_encoder": Graph(PAIR[1:], "features", meaning, task.text_features),
        }

    def outputs(self, tensors: Mapping[str, Tensor], labels: Tensor | None) -> dict[str, Tensor]:
        """Return the outputs by transformers' names, with labels also the `loss`.

        tensors: the given ones of pixels, right (float, (B, 3, H, W), in [-1, 1]), ids and is_padding. Raises UserError.
        """
        raise UserError(f"the task {self.task.section.name} has no head")

    def encode(self, tensors: Mapping[str, Tensor]) -> Encoded:
        """Return the states of images, of texts or of pairs.

        Raises UserError without either.
        """
        if not tensors:
            raise UserError("give pixel_values, input_ids or both")
        encoder = self.task.encoder
        image = encoder.image(tensors["pixels"]) if "pixels" in tensors else None
        return encoder.encode(
            image, encoder.text(tensors["ids"], tensors["is_padding"]) if "ids" in tensors else None
        )


class HeadlessHeads(Heads):
    """Encoder without heads."""

    section = sections.HeadlessConfig

    def outputs(self, tensors: Mapping[str, Tensor], labels: Tensor | None) -> dict[str, Tensor]:
        """Return `last_hidden_state` (B, N, D) after the final norm.

        It holds the image's [CLS] and patches, then the text. Also `pooler_output` (B, D), the state of the text [CLS], of the
        image's where there is no text.
        """
        if labels is not None:
            raise UserError("an encoder without heads has no loss: leave out labels")
        encoded = self.encode(tensors)
        return {"last_hidden_state": encoded.x_BND, "pooler_output": encoded.cls_BD}


class MaskedSignalHeads(Heads):
    """Token head."""

    section = sections.MaskedSignalConfig

    def __init__(self, task: Any):
        super().__init__(task)
        self.missing = (
            None if task.settings.mlm_weight else "the head for tokens, but task.mlm_weight is 0"
        )

    def outputs(self, tensors: Mapping[str, Tensor], labels: Tensor | None) -> dict[str, Tensor]:
        """Return `logits` (B, T, V) of texts with [MASK] and whole images.

        labels: int64 (B, T), the masked tokens, -100 elsewhere; the loss is their mean cross-entropy in nats.
        """
        encoded = self.encode({name: tensors[name] for name in PAIR})
        logits_BTV = self.task.token_head(encoded.text_BTD)
        if labels is None:
            return {"logits": logits_BTV}
        is_masked_BT = labels != IGNORED
        loss = objectives.masked_tokens(
            logits_BTV[is_masked_BT], labels[is_masked_BT], is_masked_BT.sum().clamp(min=1)
        )
        # transformers expects only the tokens' loss and the balance loss of the weighted sum
        return {"loss": loss + self.task.output({}, encoded.routers).loss, "logits": logits_BTV}


class ContrastHeads(Heads):
    """Comparable features and a matching head."""

    def graphs(self) -> dict[str, Graph]:
        """Return the graphs of the encoders and of the matching head."""
        task = self.task
        if task.contrast.match_head is None:
            return super().graphs()
        order = "the second alone"
        if task.orders_by_sum:
            order = f"the second less the first plus the features' dot product over {task.contrast.features.temperature:.6g}"
        meaning = (
            f"no match, match; their softmax is the probability; {order} puts candidates in order"
        )
        return super().graphs() | {
            "matcher": Graph(PAIR, "logits", meaning, lambda *pair: task.match(*pair)[0])
        }


class ContrastMatchHeads(MaskedSignalHeads, ContrastHeads):
    """Token head, features and matching head."""

    section = sections.ContrastMatchConfig


class RetrievalHeads(ContrastHeads):
    """Features and matching head of retrieval."""

    section = sections.RetrievalConfig

    def outputs(self, tensors: Mapping[str, Tensor], labels: Tensor | None) -> dict[str, Tensor]:
        """Return `image_embeds` (I, d) and `text_embeds` (C, d) and, given both, scores.

        With contrast the scores are `logits_per_image` (I, C), similarity over the temperature, and `logits_per_text`; with a
        matching head and I = C also `match_logits` (B, 2), row by row.

        labels: int64 (B,) of true pairs in order, equal where two pairs show the same image, which makes them no negatives of
        each other. In training mode with labels, only the loss is computed.
        """
        task = self.task
        images, ids, is_padding = (tensors.get(name) for name in PAIR)
        if images is None and ids is None:
            raise UserError("give pixel_values, input_ids or both")
        outputs: dict[str, Tensor] = {}
        if labels is not None:
            if (
                images is None
                or ids is None
                or is_padding is None
                or not len(images) == len(ids) == len(labels)
            ):
                raise UserError(
                    "labels need as many pixel_values and input_ids: an image and its text in each row"
                )
            given: dict[str, Any] = {
                "images_BCHW": images,
                "ids_BT": ids,
                "is_padding_BT": is_padding,
            }
            outputs["loss"] = task(
                CaptionBatch(**given, where=(), image_id_B=labels, caption_B=labels)
            ).loss
            if task.training:
                return outputs
        if images is not None:
            outputs["image_embeds"] = task.image_features(images)
        if ids is not None:
            outputs["text_embeds"] = task.text_features(ids, is_padding)
        if images is not None and ids is not None:
            if task.is_comparable:
                similarity_IC = task.contrast.features.logits(
                    outputs["image_embeds"], outputs["text_embeds"]
                )
                outputs |= {"logits_per_image": similarity_IC, "logits_per_text": similarity_IC.T}
            if task.contrast.match_head is not None and len(images) == len(ids):
                outputs["match_logits"] = task.match(images, ids, is_padding)[0]
        return outputs


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


class VQAHeads(ClassifierHeads):
    """Answer head."""

    section, name, has_sigmoids = sections.VQAConfig, "answerer", True


class NLVR2Heads(ClassifierHeads):
    """Head for the truth of a statement."""

    section, name = sections.NLVR2Config, "verify"


def heads_class(section: type[sections.TaskConfig]) -> type[Heads]:
    """Return the heads of a section.

    Without heads of its own, it has those of the section that it refines, else those of its kind of task.
    """
    define("eve_vl.interop", section.name)
    return class_for(Heads, section) or (
        ClassifierHeads if hasattr(task_class(section), "reads") else Heads
    )


def heads_of(task: Task[Any]) -> Heads:
    """Return the heads of a task."""
    return heads_class(task.section)(task)
