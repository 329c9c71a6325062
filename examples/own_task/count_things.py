"""Count the different things in an image: a task in one file.

Letters: B batch, C channels, H height, W width.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tyro.conf import Positional

from eve_vl.config import Config, DataConfig, TaskConfig, TokenizerConfig, TrainConfig
from eve_vl.data.batches import normalize
from eve_vl.data.kinds.labels import LabeledImages, LabeledRows
from eve_vl.metrics.intervals import mean, share
from eve_vl.model.heads import MLPHead
from eve_vl.predict.requests import Request, ShownImage
from eve_vl.predict.user_images import user_image
from eve_vl.tasks.baseline import Baseline
from eve_vl.tasks.evaluator import Evaluator
from eve_vl.tasks.predictor import Predictor
from eve_vl.tasks.task import Routers, Task
from eve_vl.train.processes import gather_objects
from eve_vl.train.step import StepOutput


class CountConfig(TaskConfig):
    """Config section: the number of labels of an image, as a regression."""

    name = "count"
    title = "counting"
    inputs = "image"  # the part of a row that LabeledRows reads
    beta: float = 1.0
    """Smooth L1: errors below beta are squared, larger ones linear."""


class CountRequest(Request):
    """Count the different things in an image: eve count RUN IMAGE."""

    name = "count"
    image: Positional[ShownImage]
    """Image."""

    @classmethod
    def lines(cls, result: float) -> str:
        """Return the count as text for the terminal."""
        return f"{result:.1f}"


class CountPredictor(Predictor):
    """Answers the request in Python, on the command line and over HTTP."""

    section = CountConfig

    @torch.no_grad()
    def count(self, asked: CountRequest) -> float:
        """Return the number of different things in an image."""
        images = self.inputs.images([user_image(asked.image)])
        counts, _ = self.task.counts(images)
        return counts.item()


class Count(Task[CountConfig]):
    """Regression on the mean of the patches' states."""

    section = CountConfig
    dataset = LabeledRows

    def build(self) -> None:
        """Build the head."""
        D = self.config.model.embed_dim
        self.find_unused_parameters = True  # images alone train no text weights
        self.count_head = torch.nn.Sequential(
            torch.nn.BatchNorm1d(D, affine=False), MLPHead(D, D, 1)
        )

    def counts(self, images_BCHW: Tensor) -> tuple[Tensor, Routers]:
        """Return the counts, float32 (B,), and the router states."""
        images = self.encoder.image(normalize(images_BCHW))
        encoded = self.encoder.encode(images, None)
        mean_of_patches_BD = encoded.x_BND[:, 1:].mean(1)
        counts_B = self.count_head(mean_of_patches_BD.float())[:, 0].float()
        return counts_B, encoded.routers

    def forward(self, batch: LabeledImages) -> StepOutput:
        """Return the loss."""
        counts_B, routers = self.counts(batch.images_BCHW)
        true_B = counts_B.new_tensor([len(labels) for labels in batch.labels])
        loss = torch.nn.functional.smooth_l1_loss(counts_B, true_B, beta=self.settings.beta)
        return self.output({"count": loss}, routers)


class CountEvaluator(Evaluator[Count]):
    """Metrics of the task and the baseline that they must beat."""

    section = CountConfig
    main_metric = "count_acc"
    baselines = (
        Baseline(
            "count_acc", "images", "count_acc_majority", "always saying the most frequent count"
        ),
    )

    @torch.no_grad()
    def predict_all(self, loader: Iterable[Any]) -> Sequence[Any]:
        """Return (row, count, true count) of all processes."""
        predictions = []
        for batch in loader:
            counts_B, _ = self.task.counts(batch.images_BCHW)
            true_counts = [len(labels) for labels in batch.labels]
            predictions += zip(batch.where, counts_B.tolist(), true_counts, strict=True)
        predictions_of_all = []
        for predictions_of_process in gather_objects(predictions):
            predictions_of_all += predictions_of_process
        return sorted(predictions_of_all)

    def metrics(self, predictions: Sequence[Any]) -> dict[str, float]:
        """Return the accuracy, that of the most frequent count, and the mean error."""
        num_rows = len(predictions)
        uses_of_counts = Counter(true for _, _, true in predictions)
        [(_, num_majority)] = uses_of_counts.most_common(1)
        errors = [abs(count - true) for _, count, true in predictions]
        return {
            "count_acc": share(sum(error < 0.5 for error in errors), num_rows),
            "count_acc_majority": num_majority / num_rows,
            "count_error": mean(errors),
        }


def count(init: Config) -> Config:
    """Built-in scenes, a minute on one core.

    eve finetune count_things.py:count --init RUN
    """
    train = TrainConfig(
        steps=400,
        batch_size=32,
        lr=1e-3,
        optimizer="muon",
        head_lr_multiplier=3,
        warmup=0.1,
        val_every=100,
    )
    data = DataConfig(crop_scale=(1.0, 1.0), flip=False, val_samples=500)
    return Config(
        recipe="",
        out=Path("runs/count"),
        init=init.out,
        input=init.input,
        model=init.model,
        task=CountConfig(),
        data=data,
        tokenizer=TokenizerConfig(vocab_size=init.tokenizer.vocab_size),
        train=train,
    )
