"""Import of foreign weights as run folders.

One driver serves all families of checkpoints. A family recognises its tensors and plans what they
become, mostly by a table of names. Families outside this folder, such as those of related systems,
are entry points of the group `eve_vl.converters`.
"""

import re
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eve_vl.config import Config, InputConfig, ModelConfig, TaskConfig
from eve_vl.data.answer_list import read_answers
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.interop.convert_args import ConvertArgs
from eve_vl.interop.trial_call import check_run
from eve_vl.interop.weight_table import (
    COMPUTE_ERRORS,
    Computed,
    WeightTable,
    convert_tensor,
    resolve,
)
from eve_vl.recipes import get_finetune_recipe, get_recipe
from eve_vl.recipes.registry import is_recipe
from eve_vl.run.loading import build_task
from eve_vl.run.weight_transfer import transfer
from eve_vl.run.writing import check_new, write_run
from eve_vl.tasks.headless.config import HeadlessConfig
from eve_vl.tasks.task import Task, task_class
from eve_vl.utils.errors import UserError
from eve_vl.utils.frozen import Frozen
from eve_vl.utils.seeds import seed_everything

FLAGS = ("tokenizer", "answers", "image_size", "num_heads", "drop")
"""Flags of `eve convert` for all families."""
MAX_LISTED = 10  # keys in a message


class Conversion(Frozen):
    """What the tensors of a checkpoint become."""

    tensors: Mapping[str, Tensor]
    sizes: InputConfig
    """Sizes of the checkpoint; --image-size resizes the images later."""
    model: ModelConfig
    section: TaskConfig = field(default_factory=HeadlessConfig)
    table: WeightTable = field(default_factory=dict)
    recipe: str = "base"
    """Pre-training recipe that the rest of the config comes from."""
    finetune_prefix: str = ""
    """Before the task's name: the fine-tuning recipe that it comes from instead, where there is
    one."""
    recipe_name: str = "published"
    """The config's `recipe`."""
    unused: str
    """Regular expression of the beginnings of foreign names to leave out."""
    token_embedding: str = ""
    """Foreign name of the token embeddings; "": any tokenizer fits."""
    max_words: int | None = None
    """Words of a text that published evaluation keeps, if the tokenizer is to strip texts as it
    does."""
    text_length: int | None = None
    """Length to cut text positions to; None: that of `sizes`."""
    tokenizer: Tokenizer | None = None
    """Its own, if it brings one."""
    is_partial: bool = False
    """Whether tensors without a source start at random."""
    notes: str = ""
    """End of the summary."""


@dataclass(frozen=True)
class Family:
    """A family of checkpoints."""

    title: str
    """With its article, for messages."""
    flags: tuple[str, ...]
    """Flags of `eve convert` with an effect on it, besides those of all families."""
    matches: Callable[[Mapping[str, Tensor]], bool]
    plan: Callable[[dict[str, Tensor], str, ConvertArgs], Conversion]
    """Returns what the tensors of a file become; `--drop` and unusual tensors are dealt with.
    Raises UserError."""


def import_weights(
    families: Sequence[Family], tensors: Mapping[str, Tensor], args: ConvertArgs
) -> str:
    """Write a checkpoint's run folder and return a summary.

    The first family that matches plans it, else the last. Raises UserError.
    """
    matching = [family for family in families if family.matches(tensors)]
    family = matching[0] if matching else families[-1]
    where = str(args.source)
    args.refuse_without_effect((*FLAGS, *family.flags), family.title)
    check_new(args.target)
    conversion = plan_conversion(family, dict(tensors), where, args)
    if args.tokenizer is None and conversion.tokenizer is None:
        raise UserError(f"{where}: holds no tokenizer; name the file with --tokenizer")
    config = replace(config_for(conversion, args.target, where), recipe=conversion.recipe_name)
    tokenizer = _fitting_tokenizer(conversion, args)
    labels = [] if args.answers is None else read_answers(args.answers)

    seed_everything(0)
    with torch.device("cpu" if conversion.is_partial else "meta"):
        task = build_task(config, tokenizer, labels or [""])
    num_tensors = _load_converted(task, conversion, labels, where)
    task = _resized(task, conversion, args.image_size, where)

    def check(folder: Path) -> None:
        task.to("meta")  # its weights are on the disk, and would stay in memory twice
        check_run(folder, where)

    write_run(args.target, task.config, tokenizer, task, check)

    sizes = task.config.input
    start = ", a start for other runs (--init)" if conversion.section.is_pretraining else ""
    return (
        f"{num_tensors} tensors of {family.title}: {conversion.model}, {sizes.image_size} pixels, "
        f"texts of at most {sizes.max_text_tokens} tokens of {tokenizer.vocab_size}; "
        f"{conversion.section.title}{start}{conversion.notes}"
    )


def plan_conversion(
    family: Family, tensors: dict[str, Tensor], where: str, args: ConvertArgs
) -> Conversion:
    """Return what a family makes of the tensors.

    Raises UserError, also for missing or unusual tensors.
    """
    try:
        return family.plan(tensors, where, args)
    except UserError:
        raise
    except COMPUTE_ERRORS as error:
        problem = f"{str(error) or 'a tensor'} is missing or unusual"
        raise UserError(
            f"{where}: not {family.title} ({problem}); it holds {', '.join(sorted(tensors)[:3])} …"
        ) from error


def config_for(conversion: Conversion, run: Path, where: str) -> Config:
    """Return the config of a converted checkpoint, at its sizes.

    The rest is that of the task's recipe after `finetune_prefix`, else of `recipe`. Raises
    UserError for impossible sizes.
    """
    config = get_recipe(conversion.recipe)
    finetune_recipe = conversion.finetune_prefix + conversion.section.name
    if is_recipe("finetune", finetune_recipe):
        config = get_finetune_recipe(finetune_recipe, config)
    try:
        return replace(
            config,
            recipe="published",
            init=None,
            train=replace(config.train, head_lr_multiplier=1.0),
            out=run,
            input=conversion.sizes,
            model=conversion.model,
            task=conversion.section,
        )
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _fitting_tokenizer(conversion: Conversion, args: ConvertArgs) -> Tokenizer:
    """Return the tokenizer of the weights. Raises UserError if it has another number of tokens."""
    tokenizer = conversion.tokenizer or Tokenizer.load(args.tokenizer or Path())
    embeddings = conversion.tensors.get(conversion.token_embedding)
    if embeddings is not None:
        num_embeddings = embeddings.shape[:1].numel()
        if tokenizer.vocab_size != num_embeddings:
            raise UserError(
                f"{args.tokenizer}: has {tokenizer.vocab_size} tokens, but the checkpoint has "
                "embeddings for "
                f"{num_embeddings}; bring the tokenizer that it was trained with"
            )
    if conversion.max_words is not None:
        tokenizer.clean_as_published(conversion.max_words)
    return tokenizer


def _load_converted(
    task: Task[Any], conversion: Conversion, labels: Sequence[str], where: str
) -> int:
    """Load converted tensors into a task; return their number. Raises UserError for those that do
    not fit."""
    targets = task.state_dict()
    sources = resolve(conversion.table, targets)
    wanted = {name for source in sources.values() for name in source.sources}
    used = {
        name
        for name in conversion.tensors
        if name in wanted or not re.match(conversion.unused, name)
    }
    check_keys(wanted, used, where)
    check_answers(labels, conversion, sources, where)
    weights = {
        name: convert_tensor(name, source, conversion.tensors, targets[name], where)
        for name, source in sources.items()
    }
    is_whole = not conversion.is_partial
    task.load_state_dict(weights, strict=is_whole, assign=is_whole)
    return len(weights)


def _resized(task: Task[Any], conversion: Conversion, image_size: int, where: str) -> Task[Any]:
    """Return the task for another image size (0: the same) and the conversion's text length."""
    sizes = replace(
        conversion.sizes,
        text_length=conversion.text_length or conversion.sizes.text_length,
        image_size=image_size or conversion.sizes.image_size,
    )
    if sizes == conversion.sizes:
        return task
    with torch.device("meta"):
        empty = type(task)(replace(task.config, input=sizes), task.sizes)
    resized = empty.to_empty(device="cpu")
    result = transfer(task.state_dict(), resized, where)
    assert not result.new and not result.unused, "every tensor is copied"
    return resized


def check_keys(wanted: Set[str], present: Set[str], where: str) -> None:
    """Raise UserError that lists unknown and missing keys."""
    unknown = sorted(present - wanted)
    missing = sorted(wanted - present)
    problems = []
    if unknown:
        problems.append(f"{len(unknown)} unknown: {_listed(unknown)}")
    if missing:
        problems.append(f"{len(missing)} missing: {_listed(missing)}")
    if not problems:
        return
    hint = "; leave unknown ones out with --drop PART-OF-THEIR-NAMES" if unknown else ""
    raise UserError(f"{where}: {'; '.join(problems)}{hint}")


def _listed(names: Sequence[str]) -> str:
    text = ", ".join(names[:MAX_LISTED])
    if len(names) > MAX_LISTED:
        text += " …"
    return text


def check_answers(
    labels: Sequence[str], conversion: Conversion, sources: Mapping[str, Computed], where: str
) -> None:
    """Raise UserError for answers that do not fit a checkpoint's head."""
    layer = task_class(type(conversion.section)).label_layer
    bias = sources.get(f"{layer}.bias")
    num_answers = 0
    if bias is not None:
        num_answers = conversion.tensors[bias.sources[0]].numel()
    if len(labels) != num_answers:
        raise UserError(
            f"{where}: has a head for {num_answers} answers, but --answers names {len(labels)}"
        )
