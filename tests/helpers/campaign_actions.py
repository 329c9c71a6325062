"""The entry points to which the fault campaigns give damaged data."""

from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import torch

from eve_vl.cli.main import dispatch as eve_command
from eve_vl.config import TaskConfig
from eve_vl.data.answer_list import read_answers
from eve_vl.data.opening import open_train_and_val
from eve_vl.data.readers.tar_index import INDEX_SUFFIX, find_index, shard_stamp
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.run.loading import build_task
from eve_vl.tasks.classification.config import ClassificationConfig
from eve_vl.tasks.evaluator import evaluator_class
from eve_vl.tasks.task import task_class
from eve_vl.tasks.vqa.config import VQAConfig
from helpers.campaign_images import NUM_ROWS
from helpers.campaign_reader import Action
from helpers.mutations import mutate
from helpers.odd_files import odd_name
from helpers.odd_values import TEXTS
from helpers.tiny_config import tiny_config
from helpers.tiny_rows import CAPTIONS, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
ASKED = VQAConfig(min_answer_count=1)
MASKED = replace(tiny_config().task, mlm_weight=0.0)
CLASSES = ClassificationConfig(inputs="image")


def check(spec: str, *flags: str) -> Action:
    """Return what `eve data check` does; broken rows are its exit status 1."""
    return lambda folder: eve_command(["data", "check", str(folder / spec), *flags])


def train_on(spec: str, task: TaskConfig | None, **data: Any) -> Action:
    """Return what reads, decodes and tokenises rows as training and validation do."""

    def read(folder: Path) -> None:
        options = {
            "train": (str(folder / spec),),
            "val": ("held-out",),
            "crop_scale": (0.5, 1),
        }
        config = tiny_config(task=task, data=options | data)
        kind = task_class(type(config.task))
        sources, val_sources = open_train_and_val(config, kind.dataset.kind_of(config))

        prepared = kind.prepare(config, sources, None)
        dataset = kind.dataset(prepared.sources, config, TOKENIZER, training=True)
        num_rows = min(len(prepared.sources[0]), NUM_ROWS)
        samples = [dataset[0, 0, row] for row in range(num_rows)]
        dataset.collate(samples)

        val = evaluator_class(type(config.task)).dataset(val_sources, config, TOKENIZER)
        val.collate([val[position] for position in val.eval_batches(4, 0, 1)[0]])
        for sample in samples:
            for error in sample.skipped:
                raise error  # its message is looked at

    return read


def train_tokenizer(file: str) -> Action:
    def train(folder: Path) -> None:
        out = str(folder / "../tokenizer.json")
        source = str(folder / file)
        eve_command(["tokenizer", "train", source, "--out", out, "--vocab-size", "300"])

    return train


def use_answers(file: str) -> Action:
    return lambda folder: read_answers(folder / file)


def use_tokenizer(file: str) -> Action:
    """Return what loads a tokenizer, builds a model for it, and encodes texts."""

    def use(folder: Path) -> None:
        tokenizer = Tokenizer.load(folder / file)
        with torch.device("meta"):
            build_task(tiny_config(), tokenizer)
        for text in (CAPTIONS[0], "Ünïcode ☃ 漢字 \u200b", "", "a" * 1000):
            assert tokenizer.encode(text, 12)[0].max(initial=0) < tokenizer.vocab_size
            tokenizer.encode_with_masks(f"a [MASK] {text}", 12)
        Tokenizer.from_json(tokenizer.to_json())

    return use


def damage_index(rng: Random, folder: Path) -> None:
    """Let a tar have its index, and damage that."""
    tar = folder / "a.tar"
    if tar.is_symlink() or not tar.is_file() or not tar.stat().st_size:
        return  # something else is in its place
    find_index(tar, shard_stamp(tar))
    index = folder / f"a.tar{INDEX_SUFFIX}"
    index.write_bytes(mutate(rng, "", index.read_bytes()))


def read_odd_names(folder: Path) -> None:
    """Name sources and columns by odd texts, sampled by the content of the table."""
    table = folder / "rows.jsonl"
    rng = Random(table.read_bytes() if table.is_file() else b"")
    odd = odd_name(rng, "rows.jsonl").decode("utf-8", "surrogateescape")
    name = rng.choice([*TEXTS, "rows.jsonl", odd])
    flag = rng.choice(("--image-column", "--text-column", "--label-column", "--image-root"))
    paths = [str(folder / name), f"{folder / 'rows.json'}#{name}"]
    if rng.random() < 0.5:
        eve_command(["data", "check", str(table), f"{flag}={name}"])
    else:
        train_on(rng.choice(paths), None)(folder)
