"""Start a run from another, perhaps of another task: its shape and weights."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eve_vl.config import Config
from eve_vl.run.loading import read_config, read_labels
from eve_vl.tasks.task import Task
from eve_vl.train import checkpoint, processes
from eve_vl.utils.console import print_line
from eve_vl.utils.errors import UserError, matching

ENCODER = "encoder."


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

    Raises UserError if the run has another kind of encoder: it would train another system under the recipe's name.
    """
    ours, theirs, sizes = recipe.model, start.model, start.input
    if differ := ours.incompatible_fields(theirs):
        what = ", ".join(f"model.{name} {getattr(theirs, name)} instead of {getattr(ours, name)}" for name in differ)
        raise UserError(f"{init}: another system than {recipe.recipe} ({what}); start from a run of that recipe")
    if theirs.fits_other_sizes:
        sizes = replace(recipe.input, patch_size=sizes.patch_size)
    if (shown := f"{theirs}, {sizes.image_size}² pixels") != f"{ours}, {recipe.input.image_size}² pixels":
        print_line(f"{init} keeps its shape instead of that of {recipe.recipe}: {shown}")
    return replace(recipe, input=sizes, model=theirs, tokenizer=replace(recipe.tokenizer, path=None))


def start_from(config: Config, task: Task[Any]) -> tuple[Collection[str], str]:
    """Copy the weights of config.init; return the new parameters and a note.

    With config.scratch the weights stay random. Raises UserError if the encoders differ in more than config.init_allow_missing
    allows.
    """
    assert config.init is not None
    if config.scratch:  # only heads count as new: both sides of a comparison train at equal rates
        heads = [name for name, _ in task.named_parameters() if not name.startswith("encoder.")]
        return heads, f"random weights, in the shape of {config.init}"
    folder = checkpoint.chosen_checkpoint(config.init)
    processes.from_main(lambda: checkpoint.verify(folder))
    start = read_config(folder)
    tensors = task.init_weights_from(checkpoint.read_model(folder), read_labels(folder, start))
    done = transfer(tensors, task, str(folder), config.init_allow_missing, start.input.text_length)
    new = f"new, at {config.train.head_lr_multiplier:g} × the learning rate: {parts(done.new)}" if done.new else None
    unused = f"not used: {parts(done.unused)}" if done.unused else None
    return done.new, "; ".join(filter(None, (f"weights from {folder}", done.resized, new, unused)))


def transfer(
    tensors: Mapping[str, Tensor], task: Any, where: str, may_lack: Sequence[str] = (), text_length: int | None = None
) -> Transfer:
    """Copy the weights of another run that fit.

    The encoder must fit as a whole, after resizing, except for names that match may_lack. where: the source of `tensors` in
    messages. text_length: of the source run. Raises UserError, also for a pattern without a match.
    """
    own = task.state_dict()
    encoder = {name.removeprefix(ENCODER): tensor for name, tensor in tensors.items() if name.startswith(ENCODER)}
    encoder, resized = task.encoder.resized(encoder)
    heads = {name: tensor for name, tensor in tensors.items() if not name.startswith(ENCODER)}
    tensors = heads | {ENCODER + name: tensor for name, tensor in encoder.items()}
    fitting = {name: tensor for name, tensor in tensors.items() if name in own and tensor.shape == own[name].shape}
    of_encoder = {name for name in own.keys() | tensors.keys() if name.startswith(ENCODER)}  # heads may differ
    may_differ = {name for pattern in may_lack for name in matching(pattern, of_encoder, "init_allow_missing")}
    if wrong := of_encoder - fitting.keys() - may_differ:
        name = min(wrong)
        here = f"{tuple(own[name].shape)} here" if name in own else "missing here"
        there = f"{tuple(tensors[name].shape)} there" if name in tensors else "missing there"
        differ = f"{len(wrong)} tensors differ, the first {name}" if len(wrong) > 1 else f"1 tensor differs, {name}"
        problem = f"its encoder does not fit this model: {differ}: {here}, {there}; leave out the flags that change shapes"
        fix = f"give the run's --input.text-length {text_length}, or name what may start at random: --init-allow-missing"
        raise UserError(f"{where}: {problem}, {fix}")
    with torch.no_grad():
        for name, tensor in fitting.items():
            own[name].copy_(tensor)
    return Transfer(frozenset(own.keys() - fitting.keys()), frozenset(tensors.keys() - fitting.keys()), resized)


def parts(names: Iterable[str]) -> str:
    """Return the model parts of parameters, as in `answer_head, contrast.match_head`."""
    depth = {"contrast": 2, "encoder": 2}
    return ", ".join(sorted({".".join(name.split(".")[: depth.get(name.split(".")[0], 1)]) for name in names}))
