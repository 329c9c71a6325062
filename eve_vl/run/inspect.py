"""Parameters and FLOPs of a run by part, without building its weights.

Letters: B rows of a micro-batch, T text tokens, K kept patches, M hidden patches.
"""

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from eve_vl.config import Config, DataConfig, TrainConfig
from eve_vl.data.batches import RowBatch
from eve_vl.data.kinds.items import ItemBatch
from eve_vl.data.masked_batches import MASKED
from eve_vl.data.masking import num_masked_patches
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.model.moe import Experts, MoE
from eve_vl.run.loading import build_untrained, read_config, read_labels
from eve_vl.tasks import task_class
from eve_vl.tasks.task import Headless, Sizes, Task
from eve_vl.train.checkpoint import chosen_checkpoint
from eve_vl.train.processes import autocast, pick_dtype, transformer_blocks
from eve_vl.utils.frozen import Frozen

CPU = torch.device("cpu")
NUM_LABELS = 3129  # VQA v2's usual answer list
WRAPPERS = {"", "encoder", "contrast"}  # modules whose parts are counted one by one


class Inspection(Frozen):
    """Counts of one run."""

    config: Config
    parameters: dict[str, int]
    """By part of the task."""
    active_parameters: int
    """Parameters that one pair uses: in blocks with experts, only the K chosen per token."""
    flops: dict[str, float]
    """Forward FLOPs per row with texts of full length, by part of the task; a multiply-add counts as two."""

    @property
    def flops_per_step(self) -> float:
        """Forward and backward FLOPs per row; the latter cost twice as much."""
        return 3 * sum(self.flops.values())


def inspect_run(path: Path) -> Inspection:
    """Count a run folder, with its tokenizer's vocabulary. Raises UserError."""
    folder = chosen_checkpoint(path)
    config = read_config(folder)
    tokenizer = Tokenizer.load(folder / "tokenizer.json", ends=config.model.reads_text_end)
    return inspect_config(config, tokenizer.vocab_size, read_labels(folder, config))


def inspect_config(
    config: Config, vocab_size: int | None = None, labels: Sequence[str] = ()
) -> Inspection:
    """Count a config.

    Defaults: a vocabulary of tokenizer.vocab_size and NUM_LABELS labels.
    """
    sizes = Sizes(
        vocab_size=vocab_size or config.tokenizer.vocab_size,
        labels=tuple(labels) or ("",) * NUM_LABELS,
    )
    with torch.device("meta"):
        task = build_untrained(config, sizes)
    parameters = Counter[str]()
    for name, parameter in task.named_parameters():
        parameters[_part(task, name)] += parameter.numel()
    active = parameters.total() - sum(
        experts.num_idle_parameters for experts in task.modules() if isinstance(experts, MoE)
    )
    return Inspection(
        config=config,
        parameters=parameters,
        active_parameters=active,
        flops=forward_flops(config, sizes),
    )


def _part(task: Task[Any], name: str) -> str:
    """Return the part of a task that one of its parameters or modules belongs to."""
    top, *below = name.split(".")
    return task.encoder.parts.get(below[0], "blocks") if top == "encoder" else top.replace("_", " ")


def forward_flops(config: Config, sizes: Sizes) -> dict[str, float]:
    """Return the forward FLOPs per row of a training step, by part of the task.

    Texts have full length. torch counts the matrix products and convolutions of one micro-batch. Empty for a task that does not
    train, or is the user's own: only its author knows the batches that it reads.
    """
    return _forward_flops(*_essential(config, sizes)) if _has_known_batches(config) else {}


def kept_bytes(config: Config, sizes: Sizes) -> tuple[int, int]:
    """Return the bytes that autograd keeps of a micro-batch's forward pass.

    The second number is with recomputed blocks, while the largest one is there again. Texts have full length. 0 where
    `forward_flops` is empty.
    """
    return _kept_bytes(*_essential(config, sizes)) if _has_known_batches(config) else (0, 0)


def _has_known_batches(config: Config) -> bool:
    task = task_class(type(config.task))
    return not issubclass(task, Headless) and task.__module__.startswith("eve_vl.")


def _essential(config: Config, sizes: Sizes) -> tuple[Config, Sizes]:
    """Return what counts depend on.

    A report counts a run as its start did, and finds the counts in the cache.
    """
    data, train = DataConfig(modality=config.data.modality), config.train
    dtype: Any = str(pick_dtype(train.dtype, CPU)).removeprefix("torch.")
    rows = TrainConfig(batch_size=max(2, train.batch_size // train.accumulation), dtype=dtype)
    # routing that drops tokens and negatives from other processes would need values
    dropless: Any = {"routing": "dropless"} if hasattr(config.model, "routing") else {}
    local: Any = (
        {"itm_negatives": "local"} if getattr(config.task, "itm_negatives", "") == "global" else {}
    )
    model, task = (
        dataclasses.replace(config.model, **dropless),
        dataclasses.replace(config.task, **local),
    )
    same = Config(
        recipe="",
        out=Path(),
        data=data,
        train=rows,
        input=config.input,
        model=model,
        task=task,
        tokenizer=config.tokenizer,
    )
    labels = () if config.task.is_pretraining else ("",) * len(sizes.labels)
    return same, Sizes(vocab_size=sizes.vocab_size, labels=labels)


def _without_values(config: Config, sizes: Sizes) -> Task[Any]:
    """Return a task on the meta device whose forward pass needs no values."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        task = build_untrained(config, sizes).train()
    if hasattr(task, "reads"):  # a classifier
        task.forward = task.predict  # pyright: ignore[reportAttributeAccessIssue] (the loss would need labels)
    for module in task.modules():
        if isinstance(module, Experts):
            module.forward = partial(_through_one, module)
    return task


@lru_cache
def _forward_flops(config: Config, sizes: Sizes) -> dict[str, float]:
    task = _without_values(config, sizes)
    # the meta device knows no autocast, and torch does not count the fused attention of CPUs
    no_autocast = mock.patch.multiple(
        torch,
        autocast=lambda *_, **__: contextlib.nullcontext(),
        is_autocast_enabled=lambda *_: False,
    )
    counter = FlopCounterMode(display=False)
    with (
        torch.random.fork_rng(devices=[]),
        torch.device("meta"),
        no_autocast,
        sdpa_kernel(SDPBackend.MATH),
        counter,
    ):
        batch = _example_batch(task)
        task(batch)
    counts = {
        name.partition(".")[2]: sum(ops.values()) for name, ops in counter.get_flop_counts().items()
    }
    names, found = [name for name in counts if name not in WRAPPERS], Counter[str]()
    for name in names:
        if not any(name.startswith(f"{other}.") for other in names):
            found[_part(task, name)] += counts[name]
    found["losses"] = counter.get_total_flops() - found.total()
    return {name: count / len(batch.where) for name, count in found.items() if count}


@lru_cache
def _kept_bytes(config: Config, sizes: Sizes) -> tuple[int, int]:
    task = _without_values(config, sizes)
    with (
        torch.random.fork_rng(devices=[]),
        FakeTensorMode(allow_non_fake_inputs=True),
    ):  # unlike meta tensors, with autocast
        batch = _example_batch(task)
        kept = _Kept(task.to_empty(device="cpu"))
        with (
            saved_tensors_hooks(kept.add, lambda x: x),
            autocast(CPU, getattr(torch, config.train.dtype)),
        ):
            task(batch)
    return kept.total()


class _Kept:
    """Bytes that autograd keeps of a forward pass."""

    def __init__(self, task: nn.Module):
        self.seen = {StorageWeakRef(each.untyped_storage()) for each in task.parameters()}
        self.bytes, self.inputs, self.call = (
            [0],
            0,
            0,
        )  # of each call of a block; first: outside of blocks
        for block in transformer_blocks(task):
            block.register_forward_pre_hook(self._enter)
            block.register_forward_hook(lambda *_: setattr(self, "call", 0))

    def add(self, x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if (reference := StorageWeakRef(storage)) not in self.seen:
            self.seen.add(reference)
            self.bytes[self.call] += storage.nbytes()
        return x

    def _enter(self, _: nn.Module, args: tuple[Any, ...]) -> None:
        self.call = len(self.bytes)
        self.bytes.append(0)
        self.inputs += sum(each.nbytes for each in args if isinstance(each, Tensor))

    def total(self) -> tuple[int, int]:
        return sum(self.bytes), self.bytes[0] + self.inputs + max([0, *self.bytes[1:]])


def _through_one(experts: Experts, x_RD: Tensor, *_: Tensor) -> Tensor:
    """Return the shape of `Experts.forward` at its cost.

    Without values, no row knows its expert.
    """
    fc1, fc2 = (
        weight.to(x_RD.dtype)[0].t() for weight in (experts.fc1_weight, experts.fc2_weight)
    )  # all are kept
    return experts.activation(x_RD @ fc1) @ fc2


def _example_batch(task: Task[Any]) -> RowBatch:
    """Return a micro-batch as a task reads it in training."""
    config, settings, B = task.config, task.settings, task.config.train.batch_size
    if hasattr(task, "reads"):
        shown = tuple(MASKED) if getattr(settings, "modality_dropout", False) else ("image_text",)
        return _filled(ItemBatch, config, B * len(shown), shown=shown * B)
    kind = MASKED[config.data.modality]
    if (
        by_mask := getattr(task.dataset, "by_mask", None)
    ) is not None:  # rows masked in several ways
        parts = {
            name: _filled(kind, config, B, *both) for name, both in settings.hidden_shares().items()
        }
        return by_mask(where=("",) * B * len(parts), **parts)
    return _filled(
        kind,
        config,
        B,
        getattr(settings, "image_mask_ratio", 0.0),
        getattr(settings, "text_mask_ratio", 0.0),
    )


def _filled(
    kind: type[RowBatch],
    config: Config,
    B: int,
    of_image: float = 0.0,
    of_text: float = 0.0,
    **more: Any,
) -> RowBatch:
    """Return a batch of B rows with shares of patches and tokens masked."""
    side, T, P = config.input.image_size, config.input.text_length, config.input.num_patches
    num_masked = num_masked_patches(P, of_image)
    integers, pixels = (
        partial(torch.empty, dtype=torch.long),
        torch.empty(B, 3, side, side, dtype=torch.uint8),
    )
    values: dict[str, Any] = {
        "where": ("",) * B,
        **dict.fromkeys(("images_BCHW", "right_BCHW"), pixels),
        **dict.fromkeys(("ids_BT", "right_ids_BT"), integers(B, T)),
        **dict.fromkeys(("is_padding_BT", "right_is_padding_BT")),
        **dict.fromkeys(("image_id_B", "caption_B"), integers(B)),
        **dict.fromkeys(("captions", "labels"), ()),
        "keep_BK": integers(B, P - num_masked),
        "hidden_BM": integers(B, num_masked),
        "is_masked_BT": torch.empty(B, T, dtype=torch.bool),
        "masked_M": integers(B * round((T - 1) * of_text)),
        **more,
    }
    return kind(
        **{
            field.name: values[field.name]
            for field in dataclasses.fields(kind)
            if field.name in values
        }
    )
