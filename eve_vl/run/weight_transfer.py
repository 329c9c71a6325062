"""Training that starts from the weights or the shape of another run, perhaps of another task."""

import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eve_vl.config import Config, InputConfig, ModelConfig, flat, to_dict
from eve_vl.config.flags import flag
from eve_vl.data.row_dataset import RowDataset, eval_positions
from eve_vl.run.loading import read_config, read_labels
from eve_vl.run.start_folder import start_folder
from eve_vl.tasks.task import Task
from eve_vl.train import checkpoint_files, checkpoint_folders, processes
from eve_vl.utils.console import print_line
from eve_vl.utils.errors import UserError, matching

ENCODER = "encoder."
MAX_ROWS_FOR_TEMPERATURES = 100
WITHOUT_SHAPE = {
    "layer_scale_init",
    "init_std",
    "pos_embed_init_std",
    "drop_path",
    "dropout",
    "balance_weight",
    "resize",
    "interpolation",
    "padded_text_length",
}
"""Settings of model and input that no tensor's shape depends on."""


@dataclass(frozen=True)
class Transfer:
    """Result of a start from another run's weights."""

    new: frozenset[str]
    """Parameters missing there or of another shape; they start at random."""
    unused: frozenset[str]
    """Parameters that this model does not have."""
    resized: str | None
    """Sentence on resized encoder weights; None without any."""


def in_its_shape(recipe: Config, start: Config, init: Path) -> Config:
    """Return the recipe in the shape of the --init run, and print what changes.

    Raises UserError if the run has another kind of encoder: it would train another system under the
    recipe's name.
    """
    incompatible = recipe.model.incompatible_fields(start.model)
    if incompatible:
        differences = [
            f"model.{name} {getattr(start.model, name)} instead of {getattr(recipe.model, name)}"
            for name in incompatible
        ]
        raise UserError(
            f"{init}: another system than {recipe.recipe} ({', '.join(differences)}); "
            "start from a run of that recipe"
        )
    sizes = start.input
    if getattr(start.model, "positions", "") == "relative":
        # its weights, resized, fit other images and shorter texts
        sizes = replace(recipe.input, patch_size=start.input.patch_size)
    new_shape = _shape_text(start.model, sizes)
    if new_shape != _shape_text(recipe.model, recipe.input):
        print_line(f"{init} keeps its shape instead of that of {recipe.recipe}: {new_shape}")
    tokenizer = replace(recipe.tokenizer, path=None)
    return replace(recipe, input=sizes, model=start.model, tokenizer=tokenizer)


def _shape_text(model: ModelConfig, sizes: InputConfig) -> str:
    return f"{model}, {sizes.image_size}² pixels in patches of {sizes.patch_size}"


def start_from(config: Config, task: Task[Any]) -> tuple[Collection[str], str]:
    """Copy the weights of config.init; return the new parameters and a note.

    With config.scratch the weights stay random, and config.init may be None. Raises UserError if
    the encoders differ in more than config.init_allow_missing allows.
    """
    if config.scratch:  # only heads count as new: both sides of a comparison train at equal rates
        heads = [name for name, _ in task.named_parameters() if not name.startswith(ENCODER)]
        shape = f", in the shape of {config.init}" if config.init is not None else ""
        return heads, f"random weights{shape}"
    assert config.init is not None
    folder = checkpoint_folders.chosen_checkpoint(start_folder(config.init))
    processes.from_main(lambda: checkpoint_files.verify(folder))
    start = read_config(folder)
    tensors = task.init_weights_from(
        checkpoint_files.read_model(folder), read_labels(folder, start)
    )
    result = transfer(
        tensors,
        task,
        str(folder),
        config.init_allow_missing,
        shape_flags=flags_of_shape(config, start),
    )
    sentences = [f"weights from {folder}"]
    if result.resized:
        sentences.append(result.resized)
    if result.new:
        rate = f"{config.train.head_lr_multiplier:g} × the learning rate"
        sentences.append(f"new, at {rate}: {model_parts(result.new)}")
    if result.unused:
        sentences.append(f"not used: {model_parts(result.unused)}")
    return result.new, "; ".join(sentences)


def flags_of_shape(config: Config, start: Config) -> list[str]:
    """Return the flags, in words, that give a config the shapes of another run's encoder."""
    values = flat({"model": to_dict(config.model), "input": to_dict(config.input)})
    start_values = flat({"model": to_dict(start.model), "input": to_dict(start.input)})
    words: list[str] = []
    for name, start_value in start_values.items():
        _, _, field = name.rpartition(".")
        if field in WITHOUT_SHAPE or name not in values:
            continue
        if values[name] != start_value:
            words += flag(name, start_value)
    return words


def transfer(
    tensors: Mapping[str, Tensor],
    task: Any,
    where: str,
    may_lack: Sequence[str] = (),
    *,
    shape_flags: Sequence[str] = (),
) -> Transfer:
    """Copy the weights of another run that fit.

    The encoder must fit as a whole, after resizing, except for names that match may_lack. where:
    the source of `tensors` in messages. shape_flags: see `flags_of_shape`. Raises UserError,
    also for a pattern without a match.
    """
    targets = task.state_dict()
    tensors, resized = _with_resized_encoder(tensors, task)
    fitting = {
        name: tensor
        for name, tensor in tensors.items()
        if name in targets and tensor.shape == targets[name].shape
    }

    # heads may differ
    encoder_names = {name for name in targets.keys() | tensors.keys() if name.startswith(ENCODER)}
    may_differ: set[str] = set()
    for pattern in may_lack:
        may_differ.update(matching(pattern, encoder_names, "init_allow_missing"))
    misfits = encoder_names - fitting.keys() - may_differ
    if misfits:
        problem = _misfit_text(misfits, targets, tensors)
        fix = "name what may start at random: --init-allow-missing"
        if shape_flags:
            fix = f"give {shlex.join(shape_flags)} as there"
        raise UserError(f"{where}: {problem}; {fix}")

    with torch.no_grad():
        for name, tensor in fitting.items():
            targets[name].copy_(tensor)
    return Transfer(
        new=frozenset(targets.keys() - fitting.keys()),
        unused=frozenset(tensors.keys() - fitting.keys()),
        resized=resized,
    )


def _with_resized_encoder(
    tensors: Mapping[str, Tensor], task: Any
) -> tuple[dict[str, Tensor], str | None]:
    """Return tensors whose encoder has the task's sizes, and a sentence on what was resized."""
    heads: dict[str, Tensor] = {}
    encoder: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.startswith(ENCODER):
            encoder[name.removeprefix(ENCODER)] = tensor
        else:
            heads[name] = tensor
    encoder, resized = task.encoder.resized(encoder)
    return heads | {ENCODER + name: tensor for name, tensor in encoder.items()}, resized


def _misfit_text(
    misfits: Set[str], targets: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
) -> str:
    """Return a sentence on encoder tensors that do not fit."""
    name = min(misfits)
    here = f"{tuple(targets[name].shape)} here" if name in targets else "missing here"
    there = f"{tuple(tensors[name].shape)} there" if name in tensors else "missing there"
    if len(misfits) > 1:
        count = f"{len(misfits)} tensors differ, the first {name}"
    else:
        count = f"1 tensor differs, {name}"
    return f"its encoder does not fit this model: {count}: {here}, {there}"


def model_parts(names: Iterable[str]) -> str:
    """Return the model parts of parameters, as in `answer_head, contrast.match_head`."""
    parts: set[str] = set()
    for name in names:
        words = name.split(".")
        depth = 2 if words[0] in ("contrast", "encoder") else 1
        parts.add(".".join(words[:depth]))
    return ", ".join(sorted(parts))


def fit_temperatures(task: Task[Any], dataset: RowDataset, device: torch.device) -> str:
    """Reset temperatures of the --init run that do not fit; return a note.

    All processes read the same rows.
    """
    reset = getattr(task, "reset_temperatures", None)
    if reset is None:
        return ""
    num_rows = min(dataset.config.train.batch_size, MAX_ROWS_FOR_TEMPERATURES)
    lengths = [len(source) for source in dataset.sources]
    batch = dataset.collate(dataset.__getitems__(eval_positions(lengths, num_rows)))
    note = ""
    task.eval()
    if len(batch.where) > 1:
        note = str(reset(batch.to(device)))
    task.train()
    return note
