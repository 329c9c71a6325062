"""What a run prints before it starts: data, machine, model, memory and length."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from eve_vl.config import HELD_OUT, Config
from eve_vl.run.flops import forward_flops
from eve_vl.run.kept_memory import kept_bytes
from eve_vl.run.step_memory import Layout, step_memory
from eve_vl.tasks.task import Task
from eve_vl.train import processes
from eve_vl.utils.console import pluralize
from eve_vl.utils.launcher import process_place

LIBRARIES = 0.43 * 2**30  # bytes of a process on a CPU before there is a model
FEW_ROWS = 100
MANY_EPOCHS = 100  # more than any recipe has on data of its intended size


def data_lines(config: Config, sources: Sequence[Any], val_sources: Sequence[Any]) -> list[str]:
    """Return lines on the number of rows per source."""
    num_val = sum(map(len, val_sources))
    if config.data.val == (HELD_OUT,):
        val = _held_out_text(config, sources, num_val)
    else:
        val = _rows_text(config.data.val, val_sources)
    if config.data.val_samples < num_val:
        val += f", {config.data.val_samples:,} of them used"
    train = _rows_text(config.data.train, sources)
    return [f"training data: {train}", f"validation data: {val}"]


def _rows_text(specs: Sequence[str], sources: Sequence[Any]) -> str:
    pairs = zip(specs, sources, strict=False)
    return ", ".join(f"{len(source):,} rows of {spec}" for spec, source in pairs)


def _held_out_text(config: Config, sources: Sequence[Any], num_val: int) -> str:
    """Return a sentence on the rows that the split keeps from training."""
    data = config.data
    num_rows = sum(len(getattr(source, "dataset", source)) for source in sources)
    num_lost = num_rows - num_val - sum(map(len, sources))
    text = f"{num_val:,} of {num_rows:,} rows held out, {num_val / num_rows:.1%}"
    if num_lost:
        if data.test_fraction or data.split_file:
            reason = "kept for a test"
        else:
            verb = "shows" if num_lost == 1 else "show"
            reason = f"that {verb} a held-out image too"
        text += f"; left out: {pluralize(num_lost, 'row')} {reason}"
    if num_val < FEW_ROWS:
        fraction = math.ceil(min(50.0, 100 * FEW_ROWS / max(num_rows, 1))) / 100
        text += f"; fewer than {FEW_ROWS} rows give wide intervals, "
        text += f"--data.val-fraction {fraction:g} keeps more"
    return text


def machine_line(device: torch.device, dtype: torch.dtype) -> str:
    """Return a line on processes, device, type and threads."""
    world_size = processes.world_size()
    machine = f"{device}, {str(dtype).removeprefix('torch.')}, "
    machine += pluralize(torch.get_num_threads(), "thread")
    if world_size > 1:
        machine = f"{world_size} processes, each with {machine}"
    return f"machine: {machine}"


def run_lines(config: Config, task: Task[Any], device: torch.device, num_rows: int) -> list[str]:
    """Return lines on model and training, and a note on many epochs.

    num_rows: of the training data.
    """
    train = config.train
    epochs = train.steps * train.batch_size / num_rows
    training = (
        f"training: {train.steps:,} steps of {train.batch_size:,} rows, {epochs:,.1f} epochs; "
        f"validation every {train.val_every:,} steps, a checkpoint every {train.save_every:,}"
    )
    lines = [_model_line(config, task, device), training]
    if epochs > MANY_EPOCHS:
        note = f"note: each row comes {epochs:,.0f} times; fewer --train.steps take less time"
        if not config.recipe.startswith("demo"):
            note += ", as do the recipes for little data, whose names start with demo"
        lines.append(note)
    if train.layout == "shard" and processes.world_size() == 1:
        effect = "has no effect in one process, which holds all weights"
        lines.append(f"note: train.layout shard {effect}; torchrun starts several")
    return lines


def _model_line(config: Config, task: Task[Any], device: torch.device) -> str:
    num_parameters = sum(parameter.numel() for parameter in task.parameters())
    num_trained = sum(
        parameter.numel() for parameter in task.parameters() if parameter.requires_grad
    )
    trained = "all" if num_trained == num_parameters else f"{num_trained:,}"
    line = f"model: {num_parameters:,} parameters, {trained} of which train"
    flops = 3 * sum(forward_flops(config, task.sizes).values()) * config.train.batch_size
    if flops:  # the backward pass costs two forward ones
        line += f", {flops / 1e9:,.0f} GFLOP a step"
    if device.type == "cpu":
        gib = expected_memory(config, task) / 2**30
        line += f", about {gib:.1f} GiB of memory besides the data"
    return line


def expected_memory(config: Config, task: Task[Any]) -> float:
    """Return the estimated bytes of the training process on a CPU.

    Saving copies the moments, when activations are gone.
    """
    world_size = processes.world_size()
    local_world_size = process_place().local_world_size  # as in train/shard.py
    is_divisible = local_world_size > 1 and world_size % local_world_size == 0
    layout = Layout(
        gpus=local_world_size if is_divisible else world_size,
        shards=config.train.layout == "shard",
    )
    kept_size = kept_bytes(config, task.sizes).of(config.train.checkpoint_activations)
    memory = step_memory(config, task, layout, kept_size / world_size)
    saving = max(0.0, memory["optimizer"] - memory["activations"])
    return LIBRARIES + sum(memory.values()) + saving
