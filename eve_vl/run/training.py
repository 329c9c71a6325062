"""From a config to a trained run."""

import dataclasses
import gc
import json
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from eve_vl.builtin.names import is_name, refuse_to_write
from eve_vl.config import HELD_OUT, Config, DataConfig, config_to_json, generated
from eve_vl.config.base import origins
from eve_vl.data import fingerprint
from eve_vl.data.loader import eval_loader, train_loader
from eve_vl.data.opening import open_sources, open_train_and_val
from eve_vl.data.records import Source, usable_rows
from eve_vl.data.row_dataset import RowDataset, eval_positions
from eve_vl.data.source_names import absolute_spec, explain_missing
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.evaluation.evaluator import evaluator_of
from eve_vl.metrics.intervals import to_json
from eve_vl.run.inspect import forward_flops
from eve_vl.run.loading import (
    build_task,
    locked,
    read_config,
    read_labels,
    settings_folder,
    start_from,
)
from eve_vl.run.plan import check_batch_size
from eve_vl.run.summary import changes, cut_texts, data_lines, machine_line, run_lines
from eve_vl.tasks import task_class
from eve_vl.tasks.task import Task, label_files
from eve_vl.train import checkpoint, processes
from eve_vl.train.log import BAD_SAMPLES, BadSamples, record
from eve_vl.train.processes import pick_device, pick_dtype
from eve_vl.train.trainer import Trainer
from eve_vl.utils.console import is_main, pluralize, print_line
from eve_vl.utils.errors import UserError
from eve_vl.utils.file_io import expand_user, write_file
from eve_vl.utils.runtime import seed_everything, set_threads

ROWS_PER_TOKEN = 20  # a tokenizer of V tokens is trained on the captions of at most 20 · V rows
ROWS_PROBED = 100
ROWS_TIMED, ROUNDS_TIMED = 64, 3  # to choose the number of threads
PAYS = 1.15  # speed-up below which further threads only burn cores
SMALL = 3e11  # FLOPs of a forward pass
MIN_SCENE_SIZE = 16  # pixels; a tokenizer reads texts only


def train(config: Config, *, must_resume: bool = False, accepts_data: bool = False) -> bool:
    """Train a run, or resume the one in config.out, and write metrics.json.

    Returns whether this is the main process. must_resume: refuse to start a new run. accepts_data: resume although rows of the
    sources have changed. Raises UserError.
    """
    refuse_to_write(config.out)
    config = with_init_tokenizer(with_absolute_paths(config))
    device = pick_device(config.train.device)
    has_joined = processes.setup(device)  # else the caller has, for several trainings
    set_threads(config.train.threads)
    is_first = is_main()
    with locked(config.out):
        numbers = _fit(
            config, device, must_resume, accepts_data
        )  # its own call: the model must be gone before the group is
    gc.collect()
    processes.barrier()
    if has_joined:
        processes.shutdown()
    if is_first:
        write_file(config.out / "metrics.json", json.dumps(to_json(numbers), indent=1) + "\n")
    return is_first


def _fit(
    config: Config, device: torch.device, must_resume: bool, accepts_data: bool
) -> dict[str, float]:
    """Set up and train; return the numbers of the last validation."""
    changed, folders = (
        check_out_folder(config, must_resume),
        checkpoint.known_checkpoints(config.out),
    )
    rank, world = processes.rank(), processes.world_size()
    check_batch_size(config, world)
    kind = task_class(type(config.task))
    print_line(machine_line(device, pick_dtype(config.train.dtype, device)))
    sources, val_sources = open_train_and_val(config, kind.dataset.kind_of(config))
    print_line(*data_lines(config, sources, val_sources))
    data, more = check_data(config, [*sources, *val_sources], folders, accepts_data)
    tokenizer = obtain_tokenizer(config, sources)
    require_truth(config, val_sources)
    prepared = kind.prepare(config, sources, read_labels(folders[-1], config) if folders else None)
    seed_everything(config.train.seed)
    with device:  # on the training device, so that initial values need no second copy
        task = build_task(config, tokenizer, prepared.labels)
    texts = {
        "config.json": config_to_json(config),
        "tokenizer.json": tokenizer.to_json(),
        **label_files(task),
    }
    texts[fingerprint.FILE] = json.dumps(data, indent=1)
    notes = changed + more if folders else list(prepared.notes)
    if tokenizer.added and not folders:
        notes.append(f"the tokenizer has no {', '.join(tokenizer.added)} of its own: added")
    new = checkpoint.read_state(folders[-1]).get("new") if folders else None
    dataset = kind.dataset(prepared.sources, config, tokenizer, training=True)
    if config.init is not None and new is None:
        new, note = start_from(config, task)
        notes += filter(
            None, [note, "" if config.scratch else fit_temperatures(task, dataset, device)]
        )
    elif config.train.freeze and not folders:
        notes.append(
            "train.freeze keeps random weights here; give weights to start from with --init RUN"
        )
    skip = config.data.skips_invalid_val
    evaluator, options = (
        evaluator_of(task),
        {"texts": texts, "new": new or (), "notes": notes, "skip_invalid": skip},
    )
    trainer = Trainer(config.train, config.out, task, evaluator, device=device, **options)
    trainer.best_texts = lambda numbers: {
        "config.json": config_to_json(
            dataclasses.replace(config, task=evaluator.selected_settings(numbers))
        )
    }
    num_rows = sum(map(len, prepared.sources))
    print_line(*cut_texts(config, tokenizer, sources), *run_lines(config, task, device, num_rows))
    tune_threads(
        trainer, dataset, checkpoint.read_state(folders[-1]).get("threads", 0) if folders else 0
    )
    seed_everything(config.train.seed + rank)  # dropout differs between processes, weights do not
    has_resumed = trainer.resume()
    loader = train_loader(dataset, consumed=trainer.samples_consumed, rank=rank, world=world)
    val_dataset = evaluator.dataset(val_sources, config, tokenizer)
    val_loader = eval_loader(val_dataset, rank=rank, world=world)
    num_seen = min(config.data.val_samples, sum(map(len, val_sources)))
    seen = dataclasses.replace(
        config, data=dataclasses.replace(config.data, val_samples=num_seen, skip_invalid_val=True)
    )
    trainer.training_rows = lambda: eval_loader(
        evaluator.dataset(prepared.sources, seen, tokenizer), rank=rank, world=world
    )
    trainer.notes = trainer.notes if has_resumed else [*trainer.notes, *val_dataset.notes()]
    processes.barrier()
    if is_main():  # only now: a failed start leaves nothing
        if not has_resumed:
            (config.out / BAD_SAMPLES).unlink(
                missing_ok=True
            )  # of an earlier run that a signal ended
        for name, text in texts.items():
            write_file(config.out / name, text)
        record(config.out, device)
    processes.barrier()
    bad_samples = BadSamples(
        config.out, num_rows=num_rows, max_share=config.data.max_invalid_fraction, writes=rank == 0
    )
    return trainer.fit(loader, val_loader, bad_samples)


def check_data(
    config: Config, opened: Sequence[Source[Any]], folders: Sequence[Path], accepts: bool
) -> tuple[dict, list[str]]:
    """Return the fingerprint of all sources, and a sentence if they have changed.

    folders: checkpoints; the newest has the fingerprint to compare with. Raises UserError for a change that is not accepted.
    """
    val = config.data.train if config.data.val == (HELD_OUT,) else config.data.val
    names = [f"training data {spec}" for spec in config.data.train] + [
        f"{fingerprint.VALIDATION} {spec}" for spec in val
    ]
    found = processes.from_main(lambda: fingerprint.of_sources(zip(names, opened, strict=True)))
    now, before = (
        {"version": fingerprint.VERSION} | found,
        fingerprint.read(folders[-1]) if folders else {},
    )
    changed = (
        f"its data has changed: {what}"
        if before and (what := fingerprint.difference(before, now))
        else ""
    )
    if accepts and not changed:
        raise UserError(
            f"{config.out}: --accept-changed-data has no effect, because no data has changed; leave it out"
        )
    if changed and not accepts:
        fix = "restore the data, choose another folder with --out, or give --accept-changed-data"
        raise UserError(f"{config.out}: {changed}; {fix}")
    return now, [changed] * bool(changed)


def fit_temperatures(task: Task[Any], dataset: RowDataset, device: torch.device) -> str:
    """Reset temperatures of the --init run that do not fit; return a note.

    All processes read the same rows.
    """
    reset = getattr(task, "reset_temperatures", None)
    if reset is None:
        return ""
    rows = min(dataset.config.train.batch_size, ROWS_PROBED)
    batch = dataset.collate(
        dataset.__getitems__(eval_positions([*map(len, dataset.sources)], rows))
    )
    task.eval()
    note = str(reset(batch.to(device))) if len(batch.where) > 1 else ""
    task.train()
    return note


def tune_threads(trainer: Trainer, dataset: RowDataset, kept: object = 0) -> None:
    """Set one thread or as many as cores, the faster one in timed passes.

    A number that the user gave stays. kept: the number of threads of a resumed run.
    """
    most, train, task = torch.get_num_threads(), trainer.config, trainer.task
    is_given = train.threads or "OMP_NUM_THREADS" in os.environ
    if is_given or most == 1 or trainer.device.type != "cpu" or processes.world_size() > 1:
        return
    rows = min(train.batch_size // train.accumulation, ROWS_TIMED)
    if isinstance(kept, int) and kept:
        torch.set_num_threads(min(kept, most))
    elif (
        sum(forward_flops(task.config, task.sizes).values()) * rows < SMALL
    ):  # large products always gain from threads
        batch = dataset.collate(
            dataset.__getitems__([(0, 0, row % len(dataset.sources[0])) for row in range(rows)])
        )
        seconds: dict[int, list[float]] = {1: [], most: []}
        for threads in (1, most) * (1 + ROUNDS_TIMED):
            torch.set_num_threads(threads)
            seconds[threads].append(trainer.time_one_pass(batch))
        one, all_ = (statistics.median(found[1:]) for found in seconds.values())
        torch.set_num_threads(most if one / all_ >= PAYS else 1)
        print_line(
            f"threads: {torch.get_num_threads()} (with {most} a step takes {all_ / one:.2f} times as long as with one)"
        )


def require_truth(config: Config, sources: Sequence[Source[Any]]) -> None:
    """Raise UserError if no best weights can be chosen.

    The first validation rows then have no labels or answers.
    """
    dataset = task_class(type(config.task)).dataset
    if not (truth := dataset.truth.removesuffix("s")):
        return
    first_rows = (
        row
        for source in sources
        for _, row in usable_rows(source, range(min(len(source), ROWS_PROBED)))
    )
    if not any(map(dataset.has_truth, first_rows)):
        problem = f"no {truth} in the first {ROWS_PROBED} validation rows, so the best weights cannot be chosen"
        fix = "name validation data that has them, or the column that has them with --data.label-column"
        raise UserError(f"data.val {' '.join(config.data.val)}: {problem}; {fix}")


def with_absolute_paths(config: Config) -> Config:
    """Return the config with absolute paths, for use from another folder."""

    def absolute(spec: str) -> str:
        named = generated(spec)
        return ":".join(named) if named else spec if spec == HELD_OUT else absolute_spec(spec)

    def with_paths(section: Any, **others: Any) -> Any:
        paths = {
            name: path
            for name, path in vars(section).items()
            if isinstance(path, Path) and not is_name(path)
        }
        return dataclasses.replace(
            section, **{name: expand_user(path).absolute() for name, path in paths.items()} | others
        )

    data = with_paths(
        config.data,
        train=tuple(map(absolute, config.data.train)),
        val=tuple(map(absolute, config.data.val)),
    )
    code = tuple((dict(config.code) | origins(type(config.task), type(config.model))).items())
    sections = {
        "data": data,
        "task": with_paths(config.task),
        "tokenizer": with_paths(config.tokenizer),
    }
    return with_paths(config, **sections, out=config.out, code=code)


def train_tokenizer(specs: Sequence[str], data: DataConfig, vocab_size: int) -> Tokenizer:
    """Train a tokenizer on the texts of any sources. Raises UserError."""
    kind = "auto" if data.text_column is None else "captions"
    return tokenizer_of(open_sources(specs, data, image_size=MIN_SCENE_SIZE, kind=kind), vocab_size)


def tokenizer_of(sources: Sequence[Source[Any]], vocab_size: int) -> Tokenizer:
    """Train a tokenizer on the texts of rows spread evenly over all sources."""
    stride = max(1, -(-sum(map(len, sources)) // (ROWS_PER_TOKEN * vocab_size)))
    rows = (
        row for source in sources for _, row in usable_rows(source, range(0, len(source), stride))
    )
    texts = [text for row in rows for text in row.texts]
    if not texts:
        fix = (
            "name the column of texts with --data.text-column, or a tokenizer with --tokenizer.path"
        )
        raise UserError(f"the sources hold no usable text to train a tokenizer on; {fix}")
    print_line(
        f"training a tokenizer of at most {vocab_size:,} tokens on {pluralize(len(texts), 'text')}"
    )
    return Tokenizer.train(texts, vocab_size)


def obtain_tokenizer(config: Config, sources: Sequence[Source[Any]]) -> Tokenizer:
    """Return the run's tokenizer.

    It is from its folder, the --init run or tokenizer.path, or trained on the captions.
    """
    ends = config.model.reads_text_end
    if folders := checkpoint.known_checkpoints(config.out):
        return Tokenizer.load(folders[-1] / "tokenizer.json", ends=ends)
    if config.init is not None:
        return Tokenizer.load(
            settings_folder(config.init, config.scratch, config.out) / "tokenizer.json", ends=ends
        )
    if config.tokenizer.path is not None:
        return Tokenizer.load(config.tokenizer.path, ends=ends)
    vocab_size, data = config.tokenizer.vocab_size, config.data
    if data.modality == "image" and all(
        map(generated, data.train)
    ):  # rows without the captions that the data has
        text = processes.from_main(lambda: train_tokenizer(data.train, data, vocab_size).to_json())
    else:
        text = processes.from_main(lambda: tokenizer_of(sources, vocab_size).to_json())
    return Tokenizer.from_json(text, ends=ends)


def with_init_tokenizer(config: Config) -> Config:
    """Return the config with the vocabulary size of an --init run. Raises UserError."""
    if config.init is None:
        return config
    vocab_size = read_config(
        settings_folder(config.init, config.scratch, config.out)
    ).tokenizer.vocab_size
    return dataclasses.replace(
        config, tokenizer=dataclasses.replace(config.tokenizer, vocab_size=vocab_size)
    )


def check_out_folder(config: Config, must_resume: bool) -> list[str]:
    """Refuse to resume a folder that holds another run, or to start without a file.

    Returns sentences on fields that may change and did. Raises UserError with the fields that differ, or with a
    missing file that a new run needs: now, because reading data may take long.
    """
    folders = checkpoint.known_checkpoints(config.out)
    if not folders:
        if must_resume:
            raise UserError(
                f"{config.out}: nothing to resume, it holds no checkpoint; leave --resume out to start"
            )
        if (config.out / "plan.json").is_file() and (config.out / "probe").is_dir():
            raise UserError(
                f"{config.out}: is a folder of eve learn, which holds runs; choose another folder with --out"
            )
        for name, section in (
            ("data", config.data),
            ("task", config.task),
            ("tokenizer", config.tokenizer),
        ):
            for field, path in vars(section).items():
                if isinstance(path, Path) and not path.exists():
                    raise UserError(f"{name}.{field}: {explain_missing(path)}")
        return []
    old = read_config(config.out)
    if old.recipe != config.recipe:
        both = f"recipe {old.recipe!r}, not {config.recipe!r}"
        raise UserError(f"{config.out}: holds a run of {both}; choose another folder with --out")
    refused, allowed = changes(old, config, checkpoint.read_state(folders[-1])["step"])
    if refused:
        fix = "give the same flags to resume, or choose another folder with --out"
        raise UserError(f"{config.out}: holds a run with other values: {'; '.join(refused)}; {fix}")
    return allowed
