"""What a run with contrast or a matching head does for people: match, zero_shot, look.

Letters: n images, m texts.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from tyro.conf import Positional

from eve_vl.config import ContrastMatchConfig, RetrievalConfig
from eve_vl.data.batch import normalize
from eve_vl.data.prompts import read_prompts
from eve_vl.evaluation.zero_shot import By, ClassScore, ZeroShot
from eve_vl.predict.base import Command, ImageFlags, JsonFlags, Predictor, in_batches
from eve_vl.predict.gradcam import Evidence
from eve_vl.predict.inputs import GivenImage, Images, Strings, chunked, given_images, given_texts, listed
from eve_vl.predict.masked_signal import MaskedSignalPredictor
from eve_vl.tasks.contrast_match import ContrastMatch
from eve_vl.tasks.contrastive import ContrastTask


@dataclass(frozen=True, kw_only=True)
class MatchFlags(JsonFlags, ImageFlags):
    """Flags of `eve match`."""

    text: Positional[str]
    """What may be true of it."""


@dataclass(frozen=True, kw_only=True)
class ZeroShotFlags(JsonFlags, ImageFlags):
    """Flags of `eve zero-shot`."""

    prompts: Positional[str]
    """JSON file of what is said of each class, {"class": ["text", …], …}; phantoms: of the built-in phantoms."""
    by: By = "mean"
    """What of its prompts' scores the score of a class is."""
    top: int = 5
    """How many classes to show."""


class ContrastPredictor(Predictor):
    """What a run with contrast or a matching head does for people."""

    section = RetrievalConfig
    task: ContrastTask[Any]
    verbs: ClassVar[dict[str, Command]] = Predictor.verbs | {
        "match": Command(flags=MatchFlags, show="{:.4f}".format, values=lambda probability: {"probability": probability}),
        "zero_shot": Command(
            flags=ZeroShotFlags,
            rows=True,
            show=lambda classes: "\n".join(f"{each.score:8.4f}  {each.label}" for each in classes),
            values=lambda classes: {"classes": [dataclasses.asdict(each) for each in classes]},
        ),
    }

    def offered(self) -> tuple[str, ...]:
        """Return the calls that the run's heads allow."""
        return ("match", "zero_shot", "explain") if self.task.contrast.match_head is not None else ("zero_shot",)

    def zero_shot(
        self, image: Images, prompts: str | Path | Mapping[str, Any], by: By = "mean", top: int = 5, batch_size: int = 64
    ) -> list[ClassScore] | list[list[ClassScore]]:
        """Return the `top` classes whose prompts an image is most like, best first; of each of several images such a list.

        prompts: {"class": ["text", …], …}, or a JSON file of it, or `phantoms`; see `data.prompts.read_prompts`. by: whether a
        class scores the mean or the max of its prompts. Scores are cosines of features, or log-odds of a match where a run has
        a matching head alone: no probabilities.
        """
        scorer = ZeroShot(self.task, self.inputs.tokenizer, read_prompts(prompts)[0], by)
        return in_batches(lambda images: scorer.best(self.inputs.images(images), top), batch_size, (given_images, image))

    @torch.no_grad()
    def match(self, image: Images, text: Strings, batch_size: int = 64) -> float | np.ndarray:
        """Return the probability that an image and a text belong together; if one of the two is a list, or both are, that of
        each of n images with each of m texts, float32 (n, m). Each image is read once.

        In training, two of three pairs were made not to, and hard to tell from those that do; a run that ranks
        (task.itm_loss) has learnt which text of several is an image's, so that this is a score to compare, no probability.
        """
        images, texts = given_images(image), given_texts(text)
        ids = [self.inputs.texts(chunk) for chunk in chunked(texts, batch_size)]
        rows = [np.zeros((0, len(texts)), np.float32)]
        for chunk in chunked(images, max(1, batch_size // max(len(texts), 1))):
            tokens = self.task.encoder.image(normalize(self.inputs.images(chunk)))
            found = [self.task.match_each(tokens, *texts).softmax(2)[:, :, 1].cpu().numpy() for texts in ids]
            rows.append(np.hstack([np.zeros((len(chunk), 0), np.float32), *found]))
        is_one = listed(image) is None and listed(text) is None
        return float(rows[1][0, 0]) if is_one else np.vstack(rows)

    def _evidence(self, images: list[GivenImage], text: str, positions: list[int] | None, answer: str | None) -> Evidence:
        batch = self.inputs.pairs(images, [text])
        pair = batch.images_BCHW, batch.ids_BT, batch.is_padding_BT
        return Evidence(logits=lambda task: task.match(*pair)[0], classes=[1], words="the match")


class ContrastMatchPredictor(MaskedSignalPredictor, ContrastPredictor):
    """What a run does for people: it fills masks, rebuilds, matches and searches."""

    section = ContrastMatchConfig
    task: ContrastMatch  # pyright: ignore[reportIncompatibleVariableOverride]
    verbs: ClassVar[dict[str, Command]] = ContrastPredictor.verbs | MaskedSignalPredictor.verbs

    def offered(self) -> tuple[str, ...]:
        """Return the calls that the run's heads allow."""
        return tuple(dict.fromkeys(ContrastPredictor.offered(self) + MaskedSignalPredictor.offered(self)))

    def _evidence(self, images: list[GivenImage], text: str, positions: list[int] | None, answer: str | None) -> Evidence:
        hides_word = self.task.settings.mlm_weight and positions is not None
        kind = MaskedSignalPredictor if hides_word or self.task.contrast.match_head is None else ContrastPredictor
        return kind._evidence(self, images, text, positions, answer)
