"""Import of foreign weights as run folders.

One driver serves all families of checkpoints. A family recognises its tensors and plans what they become, mostly by a table of
names. Families outside this folder, such as those of related systems, are entry points of the group `eve_vl.converters`.
"""

import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from eve_vl.config import Config, InputConfig, ModelConfig, TaskConfig
from eve_vl.data.answer_list import read_answers
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.interop import ConvertArgs
from eve_vl.recipes import get_finetune_recipe, get_recipe
from eve_vl.recipes.registry import is_recipe
from eve_vl.run.loading import build_task
from eve_vl.run.weight_transfer import transfer
from eve_vl.run.writing import check_new, write_run
from eve_vl.tasks.headless.config import HeadlessConfig
from eve_vl.tasks.task import task_class
from eve_vl.train import tensor_files
from eve_vl.utils.errors import UserError
from eve_vl.utils.frozen import Frozen
from eve_vl.utils.seeds import seed_everything

FLAGS = ("tokenizer", "answers", "image_size", "num_heads", "drop")
"""Flags of `eve convert` for all families."""
NESTED = ("model", "state_dict", "module")  # where training scripts put the weights
HEAD_WIDTH = 64  # of an attention head in all published sizes
CLIP_MEAN, CLIP_STD = (
    (0.48145466, 0.4578275, 0.40821073),
    (0.26862954, 0.26130258, 0.27577711),
)  # of pixels in [0, 1]
MAX_LISTED = 10  # keys in a message
ODD = (KeyError, StopIteration, ValueError, TypeError, IndexError, RuntimeError, ZeroDivisionError)
"""Errors of reading or computing with tensors of another kind of file."""


class Made(NamedTuple):
    """A tensor that is computed from foreign ones."""

    compute: Callable[..., Tensor]
    sources: tuple[str, ...]


Table = Mapping[str, str | float | Made]
"""Source of our tensors: a foreign name for the same numbers, a constant, or a computation.

A key names a tensor or all tensors below it; the rest of the name is the same in the sources. `*` is a number, the same in the
sources. The first key that fits counts.
"""


class Plan(Frozen):
    """The result that a family plans for the tensors of a checkpoint."""

    tensors: Mapping[str, Tensor]
    sizes: InputConfig
    """Sizes of the checkpoint; --image-size resizes the images later."""
    model: ModelConfig
    section: TaskConfig = field(default_factory=HeadlessConfig)
    table: Table = field(default_factory=dict)
    recipe: str = "base"
    """Pre-training recipe that the rest of the config comes from."""
    prefix: str = ""
    """Before the task's name: the fine-tuning recipe that it comes from instead, where there is one."""
    name: str = "published"
    """The config's `recipe`."""
    unused: str
    """Regular expression of the beginnings of foreign names to leave out."""
    words: str = ""
    """Foreign token embeddings; "": any tokenizer fits."""
    max_words: int | None = None
    """Words of a text that published evaluation keeps, if the tokenizer is to strip texts as it does."""
    text_length: int | None = None
    """Length to cut text positions to; None: that of `sizes`."""
    tokenizer: Tokenizer | None = None
    """Its own, if it brings one."""
    is_partial: bool = False
    """Whether tensors without a source start at random."""
    notes: str = ""
    """End of the summary."""


class Family(NamedTuple):
    """A family of checkpoints."""

    title: str
    """With its article, for messages."""
    flags: tuple[str, ...]
    """Flags of `eve convert` with an effect on it, besides those of all families."""
    matches: Callable[[Mapping[str, Tensor]], bool]
    plan: Callable[[dict[str, Tensor], str, ConvertArgs], Plan]
    """Returns what the tensors of a file become; `--drop` and odd tensors are dealt with. Raises UserError."""


def import_weights(
    families: Sequence[Family], tensors: Mapping[str, Tensor], args: ConvertArgs
) -> str:
    """Write a checkpoint's run folder and return a summary.

    The first family that matches plans it. Raises UserError.
    """
    family = next((each for each in families if each.matches(tensors)), families[-1])
    where, run = str(args.source), args.target
    args.refuse_without_effect((*FLAGS, *family.flags), family.title)
    check_new(run)
    plan = planned(family, dict(tensors), where, args)
    if args.tokenizer is None and plan.tokenizer is None:
        raise UserError(f"{where}: holds no tokenizer; name the file with --tokenizer")
    config = replace(config_for(plan, run, where), recipe=plan.name)
    words = plan.tokenizer or Tokenizer.load(args.tokenizer or Path())
    if (embedded := plan.tensors.get(plan.words)) is not None and words.vocab_size != (
        size := embedded.shape[:1].numel()
    ):
        fix = "bring the tokenizer that it was trained with"
        raise UserError(
            f"{args.tokenizer}: has {words.vocab_size} tokens, but the checkpoint has embeddings for {size}; {fix}"
        )
    if plan.max_words is not None:
        words.clean_as_published(plan.max_words)
    labels = [] if args.answers is None else read_answers(args.answers)
    seed_everything(0)
    with torch.device("cpu" if plan.is_partial else "meta"):
        task = build_task(config, words, labels or [""])
    own = task.state_dict()
    made = sources(plan.table, own)
    wanted = {name for each in made.values() for name in each.sources}
    found = {name for name in plan.tensors if name in wanted or not re.match(plan.unused, name)}
    check_keys(wanted, found, where)
    check_answers(labels, plan, made, where)
    ours = {
        name: computed(name, each, plan.tensors, own[name], where) for name, each in made.items()
    }
    task.load_state_dict(ours, strict=not plan.is_partial, assign=not plan.is_partial)
    sizes = replace(plan.sizes, text_length=plan.text_length or plan.sizes.text_length)
    if (sizes := replace(sizes, image_size=args.image_size or sizes.image_size)) != plan.sizes:
        with torch.device("meta"):
            new = type(task)(replace(task.config, input=sizes), task.sizes).to_empty(device="cpu")
        done = transfer(task.state_dict(), new, where)
        assert not done.new and not done.unused, "every tensor is copied"
        task = new
    write_run(run, task.config, words, task)
    start = ", a start for other runs (--init)" * plan.section.is_pretraining
    shape = f"{plan.model}, {sizes.image_size} pixels, texts of at most {sizes.max_text_tokens} tokens of {words.vocab_size}"
    return (
        f"{len(ours)} tensors of {family.title}: {shape}; {plan.section.title}{start}{plan.notes}"
    )


def planned(family: Family, tensors: dict[str, Tensor], where: str, args: ConvertArgs) -> Plan:
    """Return a family's plan.

    Raises UserError, also for missing or unusual tensors.
    """
    try:
        return family.plan(tensors, where, args)
    except UserError:
        raise
    except ODD as error:
        problem = f"{str(error) or 'a tensor'} is missing or unusual"
        raise UserError(
            f"{where}: not {family.title} ({problem}); it holds {', '.join(sorted(tensors)[:3])} …"
        ) from error


def same(tensor: Tensor) -> Tensor:
    """Return the tensor: the same numbers."""
    return tensor


def joined(*parts: Tensor) -> Tensor:
    """Return tensors as one, along the first axis."""
    return torch.cat(parts)


MULTIHEAD: Table = {
    "qkv.weight": "in_proj_weight",
    "q_bias": Made(lambda bias: bias.chunk(3)[0], ("in_proj_bias",)),
    "v_bias": Made(lambda bias: bias.chunk(3)[2], ("in_proj_bias",)),
    "proj": "out_proj",
}
"""Attention of torch's MultiheadAttention, which CLIP uses."""


def stack(*parts: Tensor) -> Tensor:
    """Return the stack of tensors that are separate there."""
    return torch.stack(parts)


def under(ours: str, theirs: str, table: Table) -> dict[str, str | float | Made]:
    """Return a table with prefixes before our names and before theirs."""
    found: dict[str, str | float | Made] = {}
    for name, rule in table.items():
        if isinstance(rule, Made):
            rule = Made(rule.compute, tuple(theirs + source for source in rule.sources))
        found[ours + name] = theirs + rule if isinstance(rule, str) else rule
    return found


def sources(table: Table, names: Iterable[str]) -> dict[str, Made]:
    """Return how each of our tensors that a table covers is made.

    Without sources it is a constant.
    """
    patterns = [
        (re.compile(re.escape(key).replace(r"\*", r"(\d+)") + r"(\..+)?"), rule)
        for key, rule in table.items()
    ]
    made: dict[str, Made] = {}
    for name in names:
        fitting = (
            (found, rule) for pattern, rule in patterns if (found := pattern.fullmatch(name))
        )
        if (first := next(fitting, None)) is None:
            continue
        (*number, rest), rule = first[0].groups(), first[1]
        if isinstance(rule, int | float):
            made[name] = Made(lambda value=rule: torch.tensor(value), ())
            continue
        compute, theirs = (same, (rule,)) if isinstance(rule, str) else rule
        made[name] = Made(
            compute, tuple(source.replace("*", "".join(number)) + (rest or "") for source in theirs)
        )
    return made


def computed(
    name: str, made: Made, tensors: Mapping[str, Tensor], own: Tensor, where: str
) -> Tensor:
    """Return one of our tensors, a copy, since a file may tie some.

    `own` has the shape that it must have. Raises UserError for foreign tensors of other shapes or types.
    """
    if not made.sources:
        return made.compute().expand(own.shape).clone()
    given, wanted = [tensors[source] for source in made.sources], tensor_files.describe_shape(own)
    if made.compute is stack:  # name the odd one of them
        for source, part in zip(made.sources, own.unbind(), strict=True):
            computed(name, Made(same, (source,)), tensors, part, where)
    try:
        result = made.compute(*given)
    except ODD:
        result = None
    if result is None or tensor_files.describe_shape(result) != wanted:
        pairs = zip(made.sources, given, strict=True)
        shapes = ", ".join(
            f"{source} has shape {tensor_files.describe_shape(tensor)}" for source, tensor in pairs
        )
        needs = "the other tensors ask for" if made.compute is same else f"{name} needs"
        raise UserError(f"{where}: {shapes}, but {needs} {wanted}")
    return result.clone()


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the weights of a .safetensors or torch file without running its code.

    Removes the prefix of DistributedDataParallel. Raises UserError.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    tensors = (
        tensor_files.read_tensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    )
    prefix = "module." if all(name.startswith("module.") for name in tensors) else ""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def _read_torch(path: Path) -> dict[str, Tensor]:
    try:
        if (
            zipfile.is_zipfile(path)
            and sum(part.file_size for part in zipfile.ZipFile(path).infolist())
            > path.stat().st_size
        ):
            raise UserError(
                f"{path}: refused: it is compressed, which torch never does, and may unpack to any size"
            )
        with warnings.catch_warnings(action="ignore"):  # about how it was written
            found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except pickle.UnpicklingError:
        raise UserError(
            f"{path}: refused: no torch checkpoint, or it holds more than tensors, which may run code"
        ) from None
    except Exception as error:  # torch raises nearly anything
        raise UserError(
            f"{path}: not a torch or safetensors checkpoint ({type(error).__name__})"
        ) from None
    for name in NESTED:
        if isinstance(found, dict) and isinstance(found.get(name), dict):
            found = found[name]
    entries = found.items() if isinstance(found, dict) else ()
    tensors = {
        name: tensor
        for name, tensor in entries
        if isinstance(name, str) and isinstance(tensor, Tensor)
    }
    if not tensors:
        raise UserError(f"{path}: holds no weights by name")
    return tensors


def renamed(name: str, rules: Mapping[str, Any]) -> str:
    """Return a name after all rules: pattern → what takes its place."""
    for pattern, new in rules.items():
        name = re.sub(pattern, new, name)
    return name


def without(tensors: Mapping[str, Tensor], drop: Sequence[str], where: str) -> dict[str, Tensor]:
    """Return the tensors whose names contain no part in `drop`, in float32.

    Raises UserError for unusual tensors.
    """
    kept = {
        name: tensor for name, tensor in tensors.items() if not any(part in name for part in drop)
    }
    tensor_files.check_tensors(kept, where)
    return {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in kept.items()
    }


def token_head(theirs: str) -> Table:
    """Return the sources of the token head, which VLMo and M3AE call `theirs`."""
    layers = {
        "fc1": "transform.dense",
        "norm": "transform.LayerNorm",
        "fc2.weight": "decoder.weight",
        "fc2.bias": "bias",
    }
    return under("token_head.", f"{theirs}.", layers)


def of_our_pixels(conv_DCPP: Tensor, std: Sequence[float]) -> Tensor:
    """Return the projection of our pixels p: theirs are (p / 2 + 1 / 2 - mean) / std."""
    return conv_DCPP / (2 * torch.tensor(std)[:, None, None])


def bias_of_our_pixels(
    conv_DCPP: Tensor, *biases: Tensor, mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """Return the bias of that projection."""
    added = (of_our_pixels(conv_DCPP, std) * (1 - 2 * torch.tensor(mean))[:, None, None]).sum(
        (1, 2, 3)
    )
    return sum(biases, start=added)


def count(pattern: str, names: Iterable[str]) -> int:
    """Return how many blocks or experts there are.

    They are the different numbers at the last `*` of the names that begin with a pattern.
    """
    begins = re.compile(re.escape(pattern).replace(r"\*", r"(-?\d+)"))
    return len({found.groups()[-1] for name in names if (found := begins.match(name))})


def side_of(positions: int, where: str) -> int:
    """Return the patches per side from the number of positions with [CLS].

    Raises UserError if they are no square.
    """
    side = round(max(positions - 1, 0) ** 0.5)
    if side < 2 or side**2 + 1 != positions:
        raise UserError(
            f"{where}: {positions} image positions are no [CLS] and a square of patches"
        )
    return side


def relative_side_of(rows: int, others: int, where: str) -> int:
    """Return the patches per side from the rows of a table of relative positions.

    others: rows that are not between patches. Raises UserError if they are no square.
    """
    side = round((max(rows - others, 0) ** 0.5 + 1) / 2)
    if side < 2 or (2 * side - 1) ** 2 + others != rows:
        wanted = f"(2g - 1)² + {others} for g × g patches"
        raise UserError(f"{where}: relative_position_bias_table has {rows} rows, expected {wanted}")
    return side


def check_keys(wanted: Set[str], found: Set[str], where: str) -> None:
    """Raise UserError that lists unknown and missing keys."""
    lists = {"unknown": sorted(found - wanted), "missing": sorted(wanted - found)}
    listed = {
        what: ", ".join(names[:MAX_LISTED]) + " …" * (len(names) > MAX_LISTED)
        for what, names in lists.items()
    }
    texts = [f"{len(names)} {what}: {listed[what]}" for what, names in lists.items() if names]
    if texts:
        hint = (
            "; leave unknown ones out with --drop PART-OF-THEIR-NAMES" if lists["unknown"] else ""
        )
        raise UserError(f"{where}: {'; '.join(texts)}{hint}")


def check_answers(labels: Sequence[str], plan: Plan, made: Mapping[str, Made], where: str) -> None:
    """Raise UserError for answers that do not fit a checkpoint's head."""
    bias = made.get(f"{task_class(type(plan.section)).label_layer}.bias")
    wanted = 0 if bias is None else plan.tensors[bias.sources[0]].numel()
    if len(labels) != wanted:
        raise UserError(
            f"{where}: has a head for {wanted} answers, but --answers names {len(labels)}"
        )


def config_for(plan: Plan, run: Path, where: str) -> Config:
    """Return the config of a plan.

    It is that of the task's recipe after `prefix`, else of `recipe`, at the plan's sizes. Raises UserError for impossible
    sizes.
    """
    config = get_recipe(plan.recipe)
    if is_recipe("finetune", finetune := plan.prefix + plan.section.name):
        config = get_finetune_recipe(finetune, config)
    own = {
        "recipe": "published",
        "init": None,
        "train": replace(config.train, head_lr_multiplier=1.0),
    }
    try:
        return replace(
            config, **own, out=run, input=plan.sizes, model=plan.model, task=plan.section
        )
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
