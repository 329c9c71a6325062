"""Published EVE checkpoints into run folders, and run folders back into published checkpoints; bit for bit both ways."""

import dataclasses
import pickle
import warnings
import zipfile
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eve_vl import builtin
from eve_vl.config import (
    Config,
    EveModelConfig,
    HeadlessConfig,
    InputConfig,
    ModelConfig,
    TaskConfig,
    config_to_json,
    kinds_of,
)
from eve_vl.config.model import Routing
from eve_vl.data.answer_vocab import read_answers
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.interop.convert.keys import buffers, key_table, to_ours, to_published
from eve_vl.interop.heads import heads_class
from eve_vl.model.embeddings import resize_positions
from eve_vl.model.init_from import parts
from eve_vl.recipes import FINETUNE, get_recipe
from eve_vl.run.loading import build_task, read_config
from eve_vl.tasks import task_class
from eve_vl.tasks.task import Task, label_files
from eve_vl.train import checkpoint
from eve_vl.utils.atomic_io import atomic_folder, reporting_write_errors
from eve_vl.utils.errors import UserError
from eve_vl.utils.safe_io import read_bytes

NESTED = ("model", "state_dict", "module")  # where training scripts put the weights
HEAD_WIDTH = 64  # of an attention head in all published sizes
SHOWN = 10  # keys that a message lists
LAYER = "backbone.encoder.layers."
EXPERTS = "mlp_moe.moe.experts.experts."
ODD = (KeyError, StopIteration, ValueError, TypeError, IndexError)
"""What looking at the shapes of a file of another kind ends in."""


def import_published(
    published: Mapping[str, Tensor],
    where: str,
    run: Path,
    *,
    tokenizer: Path,
    answers: Path | None = None,
    routing: Routing = "reference-dropless",
    num_heads: int = 0,
    text_tokens: int = 40,
    image_size: int = 0,
    clean_text: bool = True,
    drop: Sequence[str] = (),
) -> str:
    """Write the run folder of a published checkpoint (tensors by name, from the file `where`), and return a summary.

    tokenizer: the file that it was trained with. answers: for VQA, its answer list. num_heads: 0: width / 64. text_tokens:
    tokens that texts are padded to. image_size: resize the image positions to this size; 0: leave them. clean_text: strip
    texts of punctuation as in its training. drop: parts of names to leave out. Raises UserError.
    """
    check_new(run)
    published = with_present_names(without(published, drop, where))
    sizes, model, section = infer(published, where, num_heads)
    model = dataclasses.replace(model, routing=routing)
    sizes = dataclasses.replace(sizes, padded_text_length=min(text_tokens, sizes.text_length))
    config = config_for(sizes, model, section, run, where)
    table, kind = key_table(model, section), task_class(type(section))
    wanted = {name for names in table.values() for name in names}
    check_keys(wanted, published.keys() - buffers(sizes).keys(), where, "; attention here has no relative positions")
    words = matching_tokenizer(tokenizer, len(published["backbone.word_embedding.weight"]))
    if clean_text:
        words.clean_as_published(heads_class(type(section)).published.words)
    bias = published[table[f"{kind.label_layer}.bias"][0]] if kind.labels_file else None
    labels = matching_answers(answers, bias, where)
    with torch.device("meta"):
        task = build_task(config, words, labels)
    check_shapes(published, to_published(task.state_dict(), table, sizes), f"{where}:")
    task.load_state_dict(to_ours(published, table), assign=True)
    config = resized(config, task, image_size)
    write_run(run, config, words, task)
    guess = "" if num_heads else " (64 wide each, else give --num-heads)"
    start = ", a start for other runs (--init)" if section.is_pretraining else ""
    return (
        f"{len(published)} tensors: {model.depth} blocks of width {model.embed_dim}, {model.num_heads} heads{guess}, "
        f"{model.num_experts} experts in the last {model.num_deep_blocks}, {config.input.image_size} pixels, "
        f"{words.vocab_size} tokens; {section.title}{start}; routing {routing}"
    )


def resized(config: Config, task: Task[Any], image_size: int, name: str = "image.positions") -> Config:
    """Resize a task's image positions, so called in the encoder, and return its config with the new size; 0: leave them.
    Raises UserError."""
    if image_size:
        config = dataclasses.replace(config, input=dataclasses.replace(config.input, image_size=image_size))
        positions = task.encoder.get_parameter(name)
        positions.data = resize_positions(positions.data, config.input.num_patches)
    return config


def with_present_names(published: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors under the names that the key table has."""
    for kind in kinds_of(TaskConfig).values():
        for older, name in heads_class(kind).published.older_names.items():
            if older in published:
                published[name] = published.pop(older)
    return published


def check_new(run: Path) -> None:
    """Raise UserError if there is something where a run folder is to be written, or no place for one."""
    builtin.refuse(run)
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise UserError(f"{run}: already exists; name a new folder")
    with reporting_write_errors(run):
        run.parent.mkdir(parents=True, exist_ok=True)


def write_run(run: Path, config: Config, tokenizer: Tokenizer, task: Task[Any]) -> None:
    """Write a run folder of weights that were not trained here, as a whole or not at all. Raises UserError."""
    check_new(run)
    bound = min(max(tokenizer.vocab_size, 261), 64_000)  # what a config may ask for
    config = dataclasses.replace(config, tokenizer=dataclasses.replace(config.tokenizer, vocab_size=bound))
    texts = {"config.json": config_to_json(config), "tokenizer.json": tokenizer.to_json(), **label_files(task)}
    with reporting_write_errors(run), atomic_folder(run) as folder:
        checkpoint.save_best(folder, step=0, model=task.state_dict(), texts=texts, numbers={})
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")


def export_published(run: Path, target: Path) -> str:
    """Write the weights of a run, which must be one of the published kind, under the published names; return a summary.

    target: .safetensors, or .pth for a torch file. Raises UserError.
    """
    if target.suffix not in (".safetensors", ".pth", ".pt"):
        raise UserError(f"{target}: name a .safetensors or .pth file")
    if target.exists():
        raise UserError(f"{target}: already exists; name a new file")
    folder = checkpoint.chosen_checkpoint(run)
    config = read_config(folder)
    if problems := _unpublished(config):
        raise UserError(f"{run}: the published models have no {', no '.join(problems)}, so they cannot take its weights")
    assert isinstance(config.model, EveModelConfig)
    checkpoint.verify(folder, "model.safetensors")
    table, ours = key_table(config.model, config.task), checkpoint.read_model(folder)
    left_out = sorted(ours.keys() - table.keys())
    if missing := sorted(table.keys() - ours.keys()):
        raise UserError(f"{run}: lacks {', '.join(missing[:SHOWN])}")
    published = to_published(ours, table, config.input)
    checkpoint.save_weights(target, published)
    words = f"{len(published)} tensors"
    if left_out:
        words += f"; left out {len(left_out)} that the published models do not have: {parts(left_out)}"
    if config.model.routing == "dropless":
        words += "; the published code routes otherwise than this run (on the way back: --routing dropless --text-tokens 0)"
    return words


def _unpublished(config: Config) -> list[str]:
    """Return what a run has that the published models lack."""
    model, task = config.model, config.task
    if not isinstance(model, EveModelConfig):
        return [f"model {model.name}"]
    unusual = [
        f"{policy} feed-forward part in block {block}"
        for block, policy in enumerate(model.ffn_policies)
        if policy != ("moe" if block >= model.depth - model.num_deep_blocks else "modality")
    ]
    others = {
        f"activation {model.activation}": model.activation != "quick_gelu",
        "model without a norm before the first block": not model.norm_pre,
        f"stem of {model.stem}": model.stem != "linear",
        f"{model.positions} positions": model.positions != "learned",
        f"text embedding of {model.text_embedding}": model.text_embedding != "eve",
        "pooler": model.pooler,
        f"top {model.top_k} routing": model.top_k != 2 and model.num_deep_blocks > 0,
    }
    unusual += [words for words, has_it in others.items() if has_it]
    if heads_class(type(task)).published.keys(task) is None:
        own = [each.name for each in dataclasses.fields(task) if getattr(task, each.name) != each.default]
        unusual.append(f"{task.name} head with {' and '.join(f'{name} {getattr(task, name)}' for name in own)}")
    return unusual


def without(tensors: Mapping[str, Tensor], drop: Sequence[str], where: str) -> dict[str, Tensor]:
    """Return those tensors of the file `where` whose names hold none of some parts. Raises UserError for others than usual."""
    kept = {name: tensor for name, tensor in tensors.items() if not any(part in name for part in drop)}
    checkpoint.check_tensors(kept, where)
    return kept


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the weights of a .safetensors file or of a torch file, which may run no code, without what
    DistributedDataParallel puts before their names. Raises UserError."""
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
    except Exception as error:  # torch raises nearly anything for what is no checkpoint
        raise UserError(f"{path}: not a torch or safetensors checkpoint ({type(error).__name__})") from None
    for name in NESTED:
        if isinstance(found, dict) and isinstance(found.get(name), dict):
            found = found[name]
    entries = found.items() if isinstance(found, dict) else ()
    tensors = {name: tensor for name, tensor in entries if isinstance(name, str) and isinstance(tensor, Tensor)}
    if not tensors:
        raise UserError(f"{path}: holds no weights by name")
    if nested := [name for name, tensor in tensors.items() if tensor.is_nested]:  # which does not even have a shape
        raise UserError(f"{path}: {nested[0]} is a nested tensor, expected dense numbers such as float32")
    return tensors


def infer(published: Mapping[str, Tensor], where: str, num_heads: int = 0) -> tuple[InputConfig, EveModelConfig, TaskConfig]:
    """Return the sizes, the model and the task of a published checkpoint, from its tensors. Raises UserError."""
    try:
        width, _, patch_size, _ = published["backbone.patch_embed.weight"].shape
        positions = len(published["backbone.pos_embed_vision"])
        text_length = len(published["backbone.pos_embed_text"])
        blocks = numbers_after(LAYER, published)
        deep = numbers_after(LAYER, [name for name in published if EXPERTS in name])
        experts = {int(name.partition(EXPERTS)[2].split(".")[0]) for name in published if EXPERTS in name}
        ffn_dim = len(next(tensor for name, tensor in published.items() if name.endswith("fc1.bias")))
        # the tasks defined last are asked first: a fine-tuned checkpoint may still have heads of earlier training
        heads = (heads_class(kind).published for kind in reversed(kinds_of(TaskConfig).values()))
        section = next(filter(None, (head.settings(published, width) for head in heads)), HeadlessConfig())
    except ODD as error:
        first = ", ".join(sorted(published)[:3])
        raise UserError(
            f"{where}: not a published EVE checkpoint ({error or 'a feed-forward network'} is missing or unusual), nor a BEiT "
            f"or ViT image encoder (patch_embed.proj.weight, blocks.0…); it holds {first} …"
        ) from None
    depth = numbered(blocks, "blocks", where)
    if deep != set(range(depth - len(deep), depth)):
        raise UserError(f"{where}: experts in blocks {sorted(deep)} of {depth}; only the last blocks may have them")
    sizes = InputConfig(image_size=side_of(positions, where) * patch_size, patch_size=patch_size, text_length=text_length)
    model = EveModelConfig(
        embed_dim=width,
        depth=depth,
        num_heads=heads_of(width, num_heads, where),
        mlp_ratio=ffn_dim / width,
        num_deep_blocks=len(deep),
        num_experts=numbered(experts, "experts", where) or 1,
        top_k=min(2, len(experts) or 1),
        modality_routing=any(name.endswith("moe.text_embed") for name in published),
    )
    return sizes, model, section


def numbers_after(prefix: str, names: Iterable[str]) -> set[int]:
    """Return the numbers of blocks, whose names start so. Raises ValueError for what is no number."""
    return {int(name.removeprefix(prefix).split(".")[0]) for name in names if name.startswith(prefix)}


def numbered(numbers: Set[int], what: str, where: str) -> int:
    """Return how many blocks or experts there are. Raises UserError if their numbers do not run from 0."""
    if numbers != set(range(len(numbers))):
        raise UserError(f"{where}: has {len(numbers)} {what}, numbered up to {max(numbers)}, expected 0 to {len(numbers) - 1}")
    return len(numbers)


def heads_of(width: int, num_heads: int, where: str) -> int:
    """Return the number of attention heads; num_heads: 0: as many as there are in published sizes. Raises UserError."""
    num_heads = num_heads or width // HEAD_WIDTH
    if not width or not num_heads or width % num_heads:
        raise UserError(f"{where}: width {width} is not divisible by {num_heads} heads; give --num-heads")
    return num_heads


def side_of(positions: int, where: str) -> int:
    """Return the patches along a side from the number of positions, [CLS] included. Raises UserError if they are no square."""
    side = round(max(positions - 1, 0) ** 0.5)
    if side < 2 or side**2 + 1 != positions:
        raise UserError(f"{where}: {positions} image positions are no [CLS] and a square of patches")
    return side


def check_keys(wanted: Set[str], found: Set[str], where: str, relative_hint: str) -> None:
    """Raise UserError that lists the keys that are unknown or missing; relative_hint: what to say of relative positions."""
    unknown, missing = sorted(found - wanted), sorted(wanted - found)
    if unknown or missing:
        lists = [_listed("unknown", unknown), _listed("missing", missing)]
        hint = "; leave unknown ones out with --drop PART-OF-THEIR-NAMES" if unknown else ""
        if any("relative_position" in name for name in unknown):
            hint = relative_hint
        raise UserError(f"{where}: {'; '.join(filter(None, lists))}{hint}")


def _listed(what: str, names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{len(names)} {what}: {', '.join(names[:SHOWN])}{more}" if names else ""


def check_shapes(given: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: str) -> None:
    """Raise UserError for a tensor of another shape or type than expected; `where` stands before its name."""
    for name, tensor in given.items():
        found, wanted = checkpoint.form(tensor), checkpoint.form(expected[name])
        if found != wanted:
            raise UserError(f"{where} {name} has shape {found}, but the other tensors ask for {wanted}")


def check_all(
    tensors: Mapping[str, Tensor], task: Task[Any], table: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]], where: str
) -> int:
    """Compare the shapes of published tensors with those of a task, and with `shapes` of what its own are made of in another
    way; return how many there are. table: the published name of each that is the same there. Raises UserError."""
    own = task.state_dict()
    expected = {theirs: own[name] for name, theirs in table.items()}
    expected |= {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    check_shapes({name: tensors[name] for name in expected}, expected, f"{where}:")
    return len(expected)


def matching_tokenizer(path: Path, vocab_size: int) -> Tokenizer:
    """Return the tokenizer of a file. Raises UserError if it has another number of tokens."""
    words = Tokenizer.load(path)
    if words.vocab_size != vocab_size:
        raise UserError(
            f"{path}: has {words.vocab_size} tokens, but the checkpoint has embeddings for {vocab_size}; bring the "
            "tokenizer that it was trained with"
        )
    return words


def matching_answers(path: Path | None, bias: Tensor | None, where: str) -> list[str]:
    """Return the answers that a head is for, one per number of its last bias; none without a head. Raises UserError."""
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


def config_for(
    sizes: InputConfig, model: ModelConfig, task: TaskConfig, run: Path, where: str, start: str = "base", prefix: str = ""
) -> Config:
    """Return the config of weights that were not trained here, at their sizes: as the task's recipe, after a prefix, has it, if
    there is one, else as the recipe `start`.

    Raises UserError if there can be no such sizes.
    """
    config = get_recipe(start)
    if prefix + task.name in FINETUNE:
        config = FINETUNE[prefix + task.name](config)
    train = dataclasses.replace(config.train, head_lr_multiplier=1.0)
    own = {"recipe": "published", "out": run, "init": None, "train": train}
    try:
        return dataclasses.replace(config, **own, input=sizes, model=model, task=task)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
