"""A task and a micro-batch without values, to count the FLOPs and the memory of a training step.

Letters: B rows of a micro-batch, T text tokens, P patches, K kept patches, M masked ones.
"""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eve_vl.config import Config, DataConfig, TrainConfig
from eve_vl.data.batches import RowBatch
from eve_vl.data.kinds.statements import StatementBatch
from eve_vl.data.masked_batches import MASKED
from eve_vl.data.masking import num_masked_patches
from eve_vl.model.experts import Experts
from eve_vl.run.loading import build_untrained
from eve_vl.tasks.headless.task import Headless
from eve_vl.tasks.task import Sizes, Task, task_class
from eve_vl.train.devices import pick_dtype

CPU = torch.device("cpu")


def has_known_batches(config: Config) -> bool:
    """Return whether the package knows the batches that a task reads.

    It does not for a task that does not train, or is the user's own: only its author knows them.
    """
    task = task_class(type(config.task))
    return not issubclass(task, Headless) and task.__module__.startswith("eve_vl.")


def essential(config: Config, sizes: Sizes) -> tuple[Config, Sizes]:
    """Return the config and sizes with usual values in all fields that do not change counts.

    A report counts a run as its start did, and so finds the counts in the cache.
    """
    train = config.train
    dtype: Any = str(pick_dtype(train.dtype, CPU)).removeprefix("torch.")
    model = config.model
    task: Any = config.task
    # routing that drops tokens and negatives from other processes would need values
    if hasattr(model, "routing"):
        dropless: Any = {"routing": "dropless"}
        model = dataclasses.replace(model, **dropless)
    if getattr(task, "itm_negatives", "") == "global":
        task = dataclasses.replace(task, itm_negatives="local")
    counted = Config(
        recipe="",
        out=Path(),
        data=DataConfig(modality=config.data.modality),
        train=TrainConfig(batch_size=max(2, train.batch_size // train.accumulation), dtype=dtype),
        input=config.input,
        model=model,
        task=task,
        tokenizer=config.tokenizer,
    )
    labels = () if task.is_pretraining else ("",) * len(sizes.labels)
    return counted, Sizes(vocab_size=sizes.vocab_size, labels=labels)


def task_without_values(config: Config, sizes: Sizes) -> Task[Any]:
    """Return a task on the meta device whose forward pass needs no values."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        task = build_untrained(config, sizes).train()
    if _is_classifier(task):
        task.forward = task.predict  # pyright: ignore[reportAttributeAccessIssue] (the loss would need labels)
    for module in task.modules():
        if isinstance(module, Experts):
            module.forward = partial(_through_one_expert, module)  # pyright: ignore
    return task


def _is_classifier(task: Task[Any]) -> bool:
    return hasattr(task, "reads")


def _through_one_expert(experts: Experts, x_RD: Tensor, *_: Tensor) -> Tensor:
    """Return the shape of `Experts.forward` at its cost: without values, no row knows its
    expert."""
    fc1 = experts.fc1_weight.to(x_RD.dtype)[0].t()  # autograd keeps the weights of all experts
    fc2 = experts.fc2_weight.to(x_RD.dtype)[0].t()
    return experts.activation(x_RD @ fc1) @ fc2


def example_batch(task: Task[Any]) -> RowBatch:
    """Return a micro-batch as a task reads it in training, with texts of full length."""
    config = task.config
    settings = task.settings
    B = config.train.batch_size
    if _is_classifier(task):
        kind = getattr(task.dataset, "batch", StatementBatch)
        modalities = ("image_text",)
        if getattr(settings, "modality_dropout", False):
            modalities = tuple(MASKED)
        return _batch(kind, config, B * len(modalities), shown=modalities * B)
    kind = MASKED[config.data.modality]
    by_mask = getattr(task.dataset, "by_mask", None)
    if by_mask is not None:  # rows masked in several ways
        parts = {
            name: _batch(kind, config, B, *ratios)
            for name, ratios in settings.hidden_shares().items()
        }
        return by_mask(where=("",) * B * len(parts), **parts)
    image_mask_ratio = getattr(settings, "image_mask_ratio", 0.0)
    text_mask_ratio = getattr(settings, "text_mask_ratio", 0.0)
    return _batch(kind, config, B, image_mask_ratio, text_mask_ratio)


def _batch(
    kind: type[RowBatch],
    config: Config,
    B: int,
    image_mask_ratio: float = 0.0,
    text_mask_ratio: float = 0.0,
    **fields: Any,
) -> RowBatch:
    """Return a batch of B rows with shares of patches and tokens masked."""
    side = config.input.image_size
    T = config.input.text_length
    P = config.input.num_patches
    num_masked = num_masked_patches(P, image_mask_ratio)
    integers = partial(torch.empty, dtype=torch.long)
    pixels_BCHW = torch.empty(B, 3, side, side, dtype=torch.uint8)
    ids_BT = integers(B, T)
    index_B = integers(B)
    values: dict[str, Any] = {
        "where": ("",) * B,
        "images_BCHW": pixels_BCHW,
        "right_BCHW": pixels_BCHW,
        "ids_BT": ids_BT,
        "right_ids_BT": ids_BT,
        "is_padding_BT": None,
        "right_is_padding_BT": None,
        "image_id_B": index_B,
        "caption_B": index_B,
        "captions": (),
        "statements": (),
        "identifiers": (),
        "groups": (),
        "labels": (),
        "keep_BK": integers(B, P - num_masked),
        "hidden_BM": integers(B, num_masked),
        "is_masked_BT": torch.empty(B, T, dtype=torch.bool),
        "masked_M": integers(B * round((T - 1) * text_mask_ratio)),
        **fields,
    }
    names = [field.name for field in dataclasses.fields(kind)]
    return kind(**{name: values[name] for name in names if name in values})
