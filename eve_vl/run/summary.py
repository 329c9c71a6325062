"""Lines that a run prints before it starts; fields that may change.

A resumed run may change some fields.
"""

import math
import sys
from collections.abc import Sequence
from typing import Any

import torch

from eve_vl.config import HELD_OUT, Config, flat, to_dict
from eve_vl.data.records import Record, Source, usable_rows
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.run.inspect import forward_flops, kept_bytes
from eve_vl.run.plan import Layout, step_memory
from eve_vl.tasks.task import Task
from eve_vl.train import processes
from eve_vl.train.optim import learning_rate
from eve_vl.utils.console import pluralize
from eve_vl.utils.launcher import process_place

LIBRARIES = 0.43 * 2**30  # bytes of a process on a CPU before there is a model
FEW_ROWS = 100
ROWS_MEASURED = 200  # of each source, to measure text lengths
MANY_CUT = 0.02  # share of cut texts below which nothing is printed
MANY_PIECES = 2.0  # tokens a word, above which the vocabulary is small (LOG.md, 2026-11-30)
MANY_EPOCHS = 100  # more than any recipe has on data of its intended size
FREE_TRAIN = ("device", "threads", "log_every", "save_every", "keep_checkpoints")
FREE_TRAIN += ("steps", "val_every", "patience", "accumulation", "layout")
FREE_DATA = ("num_workers", "max_invalid_fraction", "skip_invalid_val", "val_samples")
OPERATIONAL = {
    "out",
    "code",
    *(f"train.{name}" for name in FREE_TRAIN),
    *(f"data.{name}" for name in FREE_DATA),
}
"""Fields that a resumed run may change, since they do not affect the steps so far.

accumulation changes the steps to come by rounding and by what is computed per micro-batch (docs/design_choices.md), layout by
rounding.
"""


def data_lines(config: Config, sources: Sequence[Any], val_sources: Sequence[Any]) -> list[str]:
    """Return lines on the number of rows per source."""
    train, val = (
        ", ".join(
            f"{len(source):,} rows of {spec}" for spec, source in zip(specs, given, strict=False)
        )
        for specs, given in ((config.data.train, sources), (config.data.val, val_sources))
    )
    num_val = sum(map(len, val_sources))
    if config.data.val == (HELD_OUT,):
        total = sum(len(getattr(source, "dataset", source)) for source in sources)
        lost = total - num_val - sum(map(len, sources))
        is_test = config.data.test_fraction or config.data.split_file
        why = (
            "kept for a test"
            if is_test
            else f"that {'shows' if lost == 1 else 'show'} a held-out image too"
        )
        val = f"{num_val:,} of {total:,} rows held out, {num_val / total:.1%}"
        val += f"; left out: {pluralize(lost, 'row')} {why}" if lost else ""
        if num_val < FEW_ROWS:
            enough = math.ceil(min(50.0, 100 * FEW_ROWS / max(total, 1))) / 100
            val += f"; fewer than {FEW_ROWS} rows give wide intervals, --data.val-fraction {enough:g} keeps more"
    used = (
        f", {config.data.val_samples:,} of them used" if config.data.val_samples < num_val else ""
    )
    return [f"training data: {train}", f"validation data: {val}{used}"]


def cut_texts(config: Config, tokenizer: Tokenizer, sources: Sequence[Source[Record]]) -> list[str]:
    """Return notes on texts that the model cuts, and on a small vocabulary.

    Both are measured on some rows of each source.
    """
    lengths, pieces = text_lengths(tokenizer, sources)
    limit = config.input.max_text_tokens
    share = sum(length > limit for length in lengths) / max(1, len(lengths))
    notes = []
    if share > MANY_CUT:
        fitting = lengths[int(0.99 * (len(lengths) - 1))]
        is_free = config.init is None or (
            getattr(config.model, "positions", "learned") == "learned" and limit < fitting
        )
        more = (
            f"--input.text-length {fitting} holds 99% of them"
            if is_free
            else f"as {config.init} reads them"
        )
        notes.append(
            f"note: {share:.0%} of the texts have more than {limit} tokens, and are cut there; {more}"
        )
    if pieces > MANY_PIECES:
        small = f"note: the vocabulary of {tokenizer.vocab_size:,} cuts words into {pieces:.1f} pieces on average"
        larger = "a larger --tokenizer.vocab-size keeps more of them whole"
        notes.append(
            f"{small}; {larger if config.init is None else f'it is that of {config.init}'}"
        )
    return notes


def text_lengths(
    tokenizer: Tokenizer, sources: Sequence[Source[Record]]
) -> tuple[list[int], float]:
    """Return sorted lengths of some texts of each source, and the tokens of a word."""
    picks = [range(0, len(source), 1 + len(source) // ROWS_MEASURED) for source in sources]
    rows = [
        row
        for source, some in zip(sources, picks, strict=True)
        for _, row in usable_rows(source, some)
    ]
    texts = [text for row in rows for text in row.texts]
    lengths = sorted(len(tokenizer.encode(text, sys.maxsize)[0]) for text in texts)
    num_words = sum(len(text.split()) for text in texts)
    return lengths, (sum(lengths) - len(lengths)) / max(num_words, 1)


def check_lines(
    config: Config, tokenizer: Tokenizer, sources: Sequence[Source[Record]]
) -> list[str]:
    """Return lines for `eve data check --recipe` on text lengths and vocabulary."""
    lengths, pieces = text_lengths(tokenizer, sources)
    if not lengths:
        return []
    spread = f"{lengths[0]} / {lengths[len(lengths) // 2]} / {lengths[-1]}"
    num_cut = sum(length > config.input.max_text_tokens for length in lengths)
    return [
        f"{'tokens per text':<20}{spread}   (min / median / max of {len(lengths):,} texts)",
        f"{'texts cut':<20}{num_cut / len(lengths):.1%} at {config.input.max_text_tokens} tokens",
        f"{'vocabulary':<20}{tokenizer.vocab_size:,} tokens, {pieces:.2f} a word",
        *cut_texts(config, tokenizer, sources),
    ]


def machine_line(device: torch.device, dtype: torch.dtype) -> str:
    """Return a line on processes, device, type and threads."""
    world, threads = processes.world_size(), torch.get_num_threads()
    each = f"{world} processes, each with " * (world > 1)
    return f"machine: {each}{device}, {str(dtype).removeprefix('torch.')}, {threads} thread{'s' * (threads > 1)}"


def run_lines(config: Config, task: Task[Any], device: torch.device, num_rows: int) -> list[str]:
    """Return lines on model and training, and a note on many epochs.

    num_rows: of the training data.
    """
    train, bytes_needed = config.train, expected_memory(config, task)
    memory = (
        f", about {bytes_needed / 2**30:.1f} GiB of memory besides the data"
        if device.type == "cpu"
        else ""
    )
    total = sum(each.numel() for each in task.parameters())
    trained = sum(each.numel() for each in task.parameters() if each.requires_grad)
    flops = (
        3 * sum(forward_flops(config, task.sizes).values()) * train.batch_size
    )  # the backward pass costs two forward ones
    cost = f", {flops / 1e9:,.0f} GFLOP a step" if flops else ""
    epochs = train.steps * train.batch_size / num_rows
    shorter = (
        ""
        if config.recipe.startswith("demo")
        else ", as do the recipes for little data, whose names start with demo"
    )
    many = f"note: each row comes {epochs:,.0f} times; fewer --train.steps take less time{shorter}"
    whole = "note: train.layout shard has no effect in one process, which holds all weights; torchrun starts several"
    return [
        f"model: {total:,} parameters, {'all of which' if trained == total else f'{trained:,} of which'} train{cost}{memory}",
        f"training: {train.steps:,} steps of {train.batch_size:,} rows, {epochs:,.1f} epochs; "
        f"validation every {train.val_every:,} steps, a checkpoint every {train.save_every:,}",
        *([many] if epochs > MANY_EPOCHS else ()),
        *([whole] if train.layout == "shard" and processes.world_size() == 1 else ()),
    ]


def expected_memory(config: Config, task: Task[Any]) -> float:
    """Return the estimated bytes of the training process on a CPU.

    Saving copies the moments, when activations are gone.
    """
    world = processes.world_size()
    here = process_place().local_world_size  # as in train/shard.py
    layout = Layout(
        gpus=here if here > 1 and world % here == 0 else world,
        shards=config.train.layout == "shard",
    )
    kept = kept_bytes(config, task.sizes)[config.train.checkpoint_activations] / world
    memory = step_memory(config, task, layout, kept)
    return LIBRARIES + sum(memory.values()) + max(0.0, memory["optimizer"] - memory["activations"])


def changes(before: Config, now: Config, step: int) -> tuple[list[str], list[str]]:
    """Compare the configs of a run at `step` and of its continuation.

    Returns the changed fields that must not change, `old → new` each, and sentences on those that may.
    """
    old, new = flat(to_dict(before)), flat(to_dict(now))
    names = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    changed = {name: f"{name} {_shown(old.get(name))} → {_shown(new.get(name))}" for name in names}
    refused = [text for name, text in changed.items() if name not in OPERATIONAL]
    allowed = [text for name, text in changed.items() if name in OPERATIONAL and name != "out"]
    if now.train.steps < step:
        refused.append(f"train.steps {now.train.steps}, below step {step}, which it has reached")
    elif before.train.steps != now.train.steps:
        rates = " to ".join(
            f"{learning_rate(step, train):.3g}" for train in (before.train, now.train)
        )
        text = f"the learning rate follows the schedule of {now.train.steps:,} steps from here on"
        allowed.append(f"{text}: at step {step:,} it goes from {rates}")
    return refused, allowed


def _shown(value: object) -> str:
    return " ".join(map(_shown, value)) or "none" if isinstance(value, list) else str(value)
