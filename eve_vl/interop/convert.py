"""Import foreign weights as run folders: one driver for all families of checkpoints.

A family tells whether tensors are its own and plans what they become. EVE's published checkpoints and image encoders are in
this room; others are entry points of the group `eve_vl.converters`, such as those of related systems.
"""

import pickle
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eve_vl import builtin
from eve_vl.config import Config, HeadlessConfig, InputConfig, ModelConfig, TaskConfig, config_to_json
from eve_vl.data.kinds.questions import read_answers
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.interop import ConvertArgs
from eve_vl.model.embeddings import resize_positions
from eve_vl.model.ffn import NORM, Keys
from eve_vl.recipes import get_recipe, recipes
from eve_vl.run.loading import build_task
from eve_vl.tasks import task_class
from eve_vl.tasks.task import Task, label_files
from eve_vl.train import checkpoint
from eve_vl.utils.errors import UserError
from eve_vl.utils.file_io import atomic_folder, read_bytes, reporting_write_errors
from eve_vl.utils.runtime import seed_everything

FLAGS = ("tokenizer", "answers", "image_size", "num_heads", "drop")
"""Flags of `eve convert` for all families."""
NESTED = ("model", "state_dict", "module")  # where training scripts put the weights
HEAD_WIDTH = 64  # of an attention head in all published sizes
MAX_LISTED = 10  # keys in a message
ODD = (KeyError, StopIteration, ValueError, TypeError, IndexError)
"""Errors of reading sizes off the shapes of another kind of file."""
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the tensors of a checkpoint become."""

    tensors: Mapping[str, Tensor]
    sizes: InputConfig
    model: ModelConfig
    section: TaskConfig = field(default_factory=HeadlessConfig)
    recipe: str = "base"
    """Pre-training recipe that the rest of the config comes from."""
    prefix: str = ""
    """Before the task's name: the fine-tuning recipe that it comes from instead, where there is one."""
    name: str = "published"
    """The config's `recipe`."""
    table: Keys = field(default_factory=dict)
    """Foreign names of each of our tensors with the same numbers, several for a stack."""
    shapes: Shapes = field(default_factory=dict)
    """Shapes of foreign tensors that `finish` transforms."""
    used: Set[str] = frozenset()
    """Further foreign tensors that `finish` reads."""
    unused: tuple[str, ...] = ()
    """Prefixes of foreign names to leave out."""
    relative_hint: str = ""
    """Advice for unknown tensors of relative positions."""
    words: str = ""
    """Foreign token embeddings; "": any tokenizer fits."""
    max_words: int | None = None
    """Words of a text that published evaluation keeps, if the tokenizer is to strip texts as it does."""
    positions: str = ""
    """Our image positions in the encoder, to resize for --image-size; "": they have that size."""
    is_partial: bool = False
    """Whether tensors without a foreign one start at random."""
    finish: Callable[[dict[str, Tensor], Task[Any]], dict[str, Tensor]]
    """Return all our tensors from those of `table`."""
    notes: str = ""
    """End of the summary."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family of checkpoints."""

    title: str
    """With its article, for messages."""
    flags: tuple[str, ...]
    """Flags of `eve convert` with an effect on it, besides those of all families."""
    matches: Callable[[Mapping[str, Tensor]], bool]
    plan: Callable[[Mapping[str, Tensor], str, ConvertArgs], Plan]
    """Return what the tensors of a file become. Raises UserError."""


def import_weights(families: Iterable[Family], tensors: Mapping[str, Tensor], args: ConvertArgs) -> str:
    """Write the run folder of a checkpoint by the first family that matches, and return a summary. Raises UserError."""
    family, where, run = next(each for each in families if each.matches(tensors)), str(args.source), args.target
    args.refuse_without_effect((*FLAGS, *family.flags), family.title)
    if args.tokenizer is None:
        raise UserError(f"{where}: holds no tokenizer; name the file with --tokenizer")
    check_new(run)
    plan = family.plan(tensors, where, args)
    config = replace(config_for(plan, run, where), recipe=plan.name)
    wanted = {name for names in plan.table.values() for name in names} | {*plan.shapes} | plan.used
    found = {name for name in plan.tensors if name in plan.used or not name.startswith(plan.unused)}
    check_keys(wanted, found, where, plan.relative_hint)
    words = Tokenizer.load(args.tokenizer)
    if plan.words and words.vocab_size != (size := plan.tensors[plan.words].shape[:1].numel()):
        raise UserError(
            f"{args.tokenizer}: has {words.vocab_size} tokens, but the checkpoint has embeddings for {size}; bring the "
            "tokenizer that it was trained with"
        )
    if plan.max_words is not None:
        words.clean_as_published(plan.max_words)
    bias = plan.table.get(f"{task_class(type(plan.section)).label_layer}.bias")
    labels = matching_answers(args.answers, plan.tensors[bias[0]] if bias else None, where)
    seed_everything(args.seed)
    with torch.device("cpu" if plan.is_partial else "meta"):
        task = build_task(config, words, labels)
    check_shapes(plan.tensors, expected_tensors(plan, task), f"{where}:")
    ours = plan.finish(by_table(plan.tensors, plan.table), task)
    task.load_state_dict(ours, strict=not plan.is_partial, assign=not plan.is_partial)
    if args.image_size and plan.positions:
        config = replace(config, input=replace(config.input, image_size=args.image_size))
        positions = task.encoder.get_parameter(plan.positions)
        positions.data = resize_positions(positions.data, config.input.num_patches)
    write_run(run, config, words, task)
    start = ", a start for other runs (--init)" * plan.section.is_pretraining
    return (
        f"{len(ours)} tensors of {family.title}: {plan.model}, {config.input.image_size} pixels, texts of at most "
        f"{config.input.max_text_tokens} tokens of {words.vocab_size}; {plan.section.title}{start}{plan.notes}"
    )


def by_table(tensors: Mapping[str, Tensor], table: Keys) -> dict[str, Tensor]:
    """Return our tensors by name as copies, since a file may tie some; the numbers stay as they are."""
    parts = {ours: [tensors[name] for name in theirs] for ours, theirs in table.items()}
    return {ours: each[0].clone() if len(each) == 1 else torch.stack(each) for ours, each in parts.items()}


def expected_tensors(plan: Plan, task: Task[Any]) -> dict[str, Tensor]:
    """Return a tensor of the expected shape for each foreign name."""
    own, expected = task.state_dict(), {}
    for ours, theirs in plan.table.items():
        expected |= zip(theirs, own[ours].unbind() if len(theirs) > 1 else (own[ours],), strict=True)
    return expected | {name: torch.empty(shape, device="meta") for name, shape in plan.shapes.items()}


def to_tuples(table: Mapping[str, str]) -> Keys:
    """Return a key table without stacks in the form of `Plan.table`."""
    return {ours: (theirs,) for ours, theirs in table.items()}


def classifier(ours: str, theirs: str) -> dict[str, str]:
    """Return the published names of a classifier with two layers in VLMo and M3AE."""
    return {f"{ours}.{number}.{part}": f"{theirs}.{number}.{part}" for number in (0, 1, 3) for part in NORM}


def token_head(theirs: str) -> dict[str, str]:
    """Return the published names of the token head, which VLMo and M3AE call `theirs`."""
    layers = {"fc1": "transform.dense", "norm": "transform.LayerNorm"}
    table = {f"token_head.{ours}.{part}": f"{theirs}.{other}.{part}" for ours, other in layers.items() for part in NORM}
    return table | {"token_head.fc2.weight": f"{theirs}.decoder.weight", "token_head.fc2.bias": f"{theirs}.bias"}


def check_new(run: Path) -> None:
    """Raise UserError if a run folder cannot be written there."""
    builtin.refuse(run)
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise UserError(f"{run}: already exists; name a new folder")
    with reporting_write_errors(run):
        run.parent.mkdir(parents=True, exist_ok=True)


def write_run(run: Path, config: Config, tokenizer: Tokenizer, task: Task[Any]) -> None:
    """Write an atomic run folder of weights that were not trained here. Raises UserError."""
    check_new(run)
    bound = min(max(tokenizer.vocab_size, 261), 64_000)  # the limits of tokenizer.vocab_size
    config = replace(config, tokenizer=replace(config.tokenizer, vocab_size=bound))
    texts = {"config.json": config_to_json(config), "tokenizer.json": tokenizer.to_json(), **label_files(task)}
    with reporting_write_errors(run), atomic_folder(run) as folder:
        checkpoint.save_best(folder, step=0, model=task.state_dict(), texts=texts, numbers={})
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")


def without(tensors: Mapping[str, Tensor], drop: Sequence[str], where: str) -> dict[str, Tensor]:
    """Return the tensors whose names contain no part in `drop`. Raises UserError for unusual tensors."""
    kept = {name: tensor for name, tensor in tensors.items() if not any(part in name for part in drop)}
    checkpoint.check_tensors(kept, where)
    return kept


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the weights of a .safetensors or torch file without running its code.

    Removes the prefix of DistributedDataParallel. Raises UserError.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    tensors = checkpoint.read_tensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    prefix = "module." if all(name.startswith("module.") for name in tensors) else ""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def _read_torch(path: Path) -> dict[str, Tensor]:
    is_zip = zipfile.is_zipfile(path)
    try:
        if is_zip and sum(part.file_size for part in zipfile.ZipFile(path).infolist()) > path.stat().st_size:
            raise UserError(f"{path}: refused: it is compressed, which torch never does, and may unpack to any size")
        with warnings.catch_warnings(action="ignore"):  # about how it was written
            found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except pickle.UnpicklingError:
        if not is_zip and read_bytes(path)[:1] != b"\x80":  # the first byte of a pickle
            raise UserError(f"{path}: not a torch or safetensors checkpoint") from None
        raise UserError(f"{path}: refused: it holds more than tensors, which may run code when loaded") from None
    except Exception as error:  # torch raises nearly anything
        raise UserError(f"{path}: not a torch or safetensors checkpoint ({type(error).__name__})") from None
    for name in NESTED:
        if isinstance(found, dict) and isinstance(found.get(name), dict):
            found = found[name]
    entries = found.items() if isinstance(found, dict) else ()
    tensors = {name: tensor for name, tensor in entries if isinstance(name, str) and isinstance(tensor, Tensor)}
    if not tensors:
        raise UserError(f"{path}: holds no weights by name")
    if nested := [name for name, tensor in tensors.items() if tensor.is_nested]:  # not even a shape
        raise UserError(f"{path}: {nested[0]} is a nested tensor, expected dense numbers such as float32")
    return tensors


def numbers_after(prefix: str, names: Iterable[str]) -> set[int]:
    """Return the numbers of blocks after a prefix of names. Raises ValueError for other text."""
    return {int(name.removeprefix(prefix).split(".")[0]) for name in names if name.startswith(prefix)}


def count_numbered(numbers: Set[int], what: str, where: str) -> int:
    """Return how many blocks or experts there are. Raises UserError unless they are numbered from 0."""
    if numbers != set(range(len(numbers))):
        raise UserError(f"{where}: has {len(numbers)} {what}, numbered up to {max(numbers)}, expected 0 to {len(numbers) - 1}")
    return len(numbers)


def heads_of(width: int, num_heads: int, where: str) -> int:
    """Return the number of attention heads; num_heads 0: the published width per head. Raises UserError."""
    num_heads = num_heads or width // HEAD_WIDTH
    if not width or not num_heads or width % num_heads:
        raise UserError(f"{where}: width {width} is not divisible by {num_heads} heads; give --num-heads")
    return num_heads


def side_of(positions: int, where: str) -> int:
    """Return the patches per side from the number of positions with [CLS]. Raises UserError if they are no square."""
    side = round(max(positions - 1, 0) ** 0.5)
    if side < 2 or side**2 + 1 != positions:
        raise UserError(f"{where}: {positions} image positions are no [CLS] and a square of patches")
    return side


def check_keys(wanted: Set[str], found: Set[str], where: str, relative_hint: str) -> None:
    """Raise UserError that lists unknown and missing keys."""
    unknown, missing = sorted(found - wanted), sorted(wanted - found)
    if unknown or missing:
        lists = [_listed("unknown", unknown), _listed("missing", missing)]
        hint = "; leave unknown ones out with --drop PART-OF-THEIR-NAMES" if unknown else ""
        if any("relative_position" in name for name in unknown):
            hint = relative_hint
        raise UserError(f"{where}: {'; '.join(filter(None, lists))}{hint}")


def _listed(what: str, names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return f"{len(names)} {what}: {', '.join(names[:MAX_LISTED])}{more}" if names else ""


def check_shapes(given: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: str) -> None:
    """Raise UserError for a tensor of another shape or type than expected."""
    for name, tensor in expected.items():
        found, wanted = checkpoint.form(given[name]), checkpoint.form(tensor)
        if found != wanted:
            raise UserError(f"{where} {name} has shape {found}, but the other tensors ask for {wanted}")


def matching_answers(path: Path | None, bias: Tensor | None, where: str) -> list[str]:
    """Return the answers of a head with this last bias; none without a head. Raises UserError."""
    if bias is None:
        if path is not None:
            raise UserError(f"{where}: has no head for answers; leave out --answers")
        return []
    count = bias.numel()
    if path is None:
        raise UserError(f"{where}: has a head for {count} answers; name their list with --answers")
    answers = read_answers(path)
    if len(answers) != count:
        raise UserError(f"{path}: lists {len(answers)} answers, but the checkpoint has a head for {count}")
    return answers


def config_for(plan: Plan, run: Path, where: str) -> Config:
    """Return the config of a plan: that of the task's recipe after `prefix`, else of `recipe`, at the plan's sizes.

    Raises UserError for impossible sizes.
    """
    config = get_recipe(plan.recipe)
    if (finetune := recipes("finetune").get(plan.prefix + plan.section.name)) is not None:
        config = finetune(config)
    own = {"recipe": "published", "init": None, "train": replace(config.train, head_lr_multiplier=1.0)}
    try:
        return replace(config, **own, out=run, input=plan.sizes, model=plan.model, task=plan.section)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
