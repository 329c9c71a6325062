"""Recipes of classification."""

from eve_vl.config import Config, DataConfig
from eve_vl.recipes.settings import (
    MUON,
    OF_YOURS,
    at_paper_scale,
    at_small_scale,
    changed,
    starts_from,
)
from eve_vl.tasks.classification.config import ClassificationConfig


def classification(init: Config) -> Config:
    """Classification of images, texts or both: 10,000 steps of batch 128.

    Images have the size of the run to start from.

    eve finetune classification --init runs/base --data.train FOLDER-PER-CLASS --data.val held-out
    """
    return at_paper_scale(
        init, "classification", ClassificationConfig(), steps=10_000, batch_size=128, lr=3e-5
    )


@starts_from("demo")
def demo_classification(init: Config) -> Config:
    """Kinds of shapes in a built-in scene, several at once; mean AP 1.000.

    Chance is 0.245; the time was not measured.

    Measured on `scenes:val` from `scenes_words --train.steps 2000`. --data.train takes any labelled
    images; add --task.no-multilabel if each has one label.

    eve finetune demo_classification --init runs/demo/pretrain
    """
    return at_small_scale(
        init, "demo_classification", ClassificationConfig(multilabel=True), steps=300, validations=2
    )


@starts_from("photos_32")
def photos_labels(init: Config) -> Config:
    """One label for each photograph of 32 pixels, as examples/photos builds them from CIFAR-10.

    eve finetune photos_labels --init runs/photos_32 \\
        --data.train cifar10/train.parquet --data.val held-out
    """
    data = DataConfig(train=("cifar10/train.parquet",), crop_scale=(0.5, 1.0), **OF_YOURS)
    training = MUON | {"batch_size": 128, "lr": 1e-3, "weight_decay": 0.05, "ema_decay": 0.99}
    return at_small_scale(
        init, "photos_labels", ClassificationConfig(), data, steps=1500, **training
    )


@starts_from("demo")
def labels_small(init: Config) -> Config:
    """One label for each image of your own, from a folder per class: minutes.

    It is `demo_classification` with one label per row; --task.multilabel allows several. Its score
    depends on the images; on built-in scenes with several labels, mean AP is 1.000.

    eve finetune labels_small --init runs/pretrained --data.train labelled
    """
    data = OF_YOURS | {"train": ("labelled",)}
    return changed(demo_classification(init), "labels_small", data=data, task={"multilabel": False})
