"""From a config to a trained run."""

import dataclasses
import gc
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from eve_vl.builtin.names import refuse_to_write
from eve_vl.config import Config, config_to_json
from eve_vl.data import fingerprint
from eve_vl.data.loader import eval_loader, train_loader
from eve_vl.data.opening import open_splits
from eve_vl.data.records import Source
from eve_vl.data.row_dataset import RowDataset
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.metrics.intervals import to_json
from eve_vl.run.absolute_paths import with_absolute_paths
from eve_vl.run.equal_processes import require_equal_flags
from eve_vl.run.leaks import validation_leaks
from eve_vl.run.loading import build_task, read_labels
from eve_vl.run.resume_checks import (
    check_batch_size,
    check_data,
    check_out_folder,
    require_truth,
)
from eve_vl.run.run_lock import locked
from eve_vl.run.run_tokenizer import obtain_tokenizer, with_init_tokenizer
from eve_vl.run.startup_summary import data_lines, machine_line, run_lines
from eve_vl.run.text_lengths import cut_texts
from eve_vl.run.thread_count import choose_threads
from eve_vl.run.weight_transfer import fit_temperatures, start_from
from eve_vl.tasks.evaluator import Evaluator, evaluator_of
from eve_vl.tasks.task import Task, label_files, task_class
from eve_vl.train import checkpoint_files, checkpoint_folders, processes
from eve_vl.train.bad_samples import BAD_SAMPLES, BadSamples
from eve_vl.train.devices import pick_device, pick_dtype
from eve_vl.train.environment import record_environment
from eve_vl.train.lost_process import explain_lost_process
from eve_vl.train.trainer import Trainer
from eve_vl.utils.console import is_main, print_line
from eve_vl.utils.file_io import write_file
from eve_vl.utils.seeds import seed_everything
from eve_vl.utils.threads import set_threads


def train(
    config: Config,
    *,
    must_resume: bool = False,
    accepts_data: bool = False,
    last_step: Callable[[int], int] | None = None,
) -> bool:
    """Train a run, or resume the one in config.out, and write metrics.json.

    Returns whether this is the main process. must_resume: refuse to start a new run. accepts_data:
    resume although rows of the sources have changed. last_step: takes the step that is reached and
    returns the one to end at, the same in all processes; the learning rate then decays to 0 there.
    It is asked at each log row; by default, train.steps stays. Raises UserError.
    """
    refuse_to_write(config.out)
    config = with_init_tokenizer(with_absolute_paths(config))
    device = pick_device(config.train.device)
    has_joined = processes.setup(device)  # else the caller has, for several trainings
    require_equal_flags(config)
    set_threads(config.train.threads)
    is_first = is_main()
    with locked(config.out), explain_lost_process(config.out):
        # its own call: the model must be gone before the group is
        numbers = _train(config, device, must_resume, accepts_data, last_step)
    gc.collect()
    processes.barrier()
    if has_joined:
        processes.shutdown()
    if is_first:
        write_file(config.out / "metrics.json", json.dumps(to_json(numbers), indent=1) + "\n")
    return is_first


@dataclass
class Setup:
    """A run that is ready to train."""

    task: Task[Any]
    tokenizer: Tokenizer
    dataset: RowDataset
    sources: Sequence[Source[Any]]
    """Training sources, without rows that the task cannot use."""
    val_sources: Sequence[Source[Any]]
    texts: dict[str, str]
    """Files of the run folder and of every checkpoint, by name."""
    new_parameters: Collection[str]
    """Parameters that train with head_lr_multiplier."""
    notes: list[str]
    """Sentences for the log."""


def _train(
    config: Config,
    device: torch.device,
    must_resume: bool,
    accepts_data: bool,
    last_step: Callable[[int], int] | None,
) -> dict[str, float]:
    """Set up and train; return the numbers of the last validation."""
    setup = _set_up(config, device, must_resume, accepts_data)
    evaluator = evaluator_of(setup.task)
    trainer = Trainer(
        config.train,
        config.out,
        setup.task,
        evaluator,
        device=device,
        texts=setup.texts,
        new=setup.new_parameters,
        notes=setup.notes,
        skip_invalid=config.data.skips_invalid_val,
    )

    def best_texts(numbers: dict[str, float]) -> dict[str, str]:
        current_config = _with_steps(config, trainer.config.steps)
        return _best_config(current_config, evaluator, numbers)

    def new_last_step(step: int) -> int:
        assert last_step is not None
        steps = last_step(step)
        text = config_to_json(_with_steps(config, steps))
        if text != setup.texts["config.json"]:
            setup.texts["config.json"] = text
            if is_main():
                write_file(config.out / "config.json", text)
        return steps

    trainer.best_texts = best_texts
    if last_step is not None:
        trainer.last_step = new_last_step
    num_rows = sum(map(len, setup.sources))
    print_line(*run_lines(config, setup.task, device, num_rows))
    choose_threads(setup.task, device, _resumed_threads(config.out))

    rank = processes.rank()
    world_size = processes.world_size()
    seed_everything(config.train.seed + rank)  # dropout differs between processes, weights do not
    has_resumed = trainer.resume()
    loader = train_loader(
        setup.dataset, consumed=trainer.samples_consumed, rank=rank, world=world_size
    )
    val_dataset = evaluator.dataset(setup.val_sources, config, setup.tokenizer)
    val_loader = eval_loader(val_dataset, rank=rank, world=world_size)
    trainer.training_rows = lambda: eval_loader(
        _training_rows_as_validation(config, setup, evaluator), rank=rank, world=world_size
    )
    if not has_resumed:
        trainer.notes = [*trainer.notes, *val_dataset.notes()]
    processes.barrier()
    if is_main():  # only now: a failed start leaves nothing
        _write_run_files(config.out, setup.texts, device, has_resumed)
    processes.barrier()
    bad_samples = BadSamples(
        config.out,
        num_rows=num_rows,
        max_share=config.data.max_invalid_fraction,
        writes=rank == 0,
    )
    return trainer.fit(loader, val_loader, bad_samples)


def _set_up(config: Config, device: torch.device, must_resume: bool, accepts_data: bool) -> Setup:
    """Check the folder and the data, and build what trains; print the facts. Raises UserError."""
    changed_fields = check_out_folder(config, must_resume)
    checkpoints = checkpoint_folders.checkpoint_folders_of_main(config.out)
    check_batch_size(config, processes.world_size())
    task_type = task_class(type(config.task))
    print_line(machine_line(device, pick_dtype(config.train.dtype, device)))
    splits = open_splits(config, task_type.dataset.kind_of(config))
    sources = splits.train
    val_sources = splits.val
    print_line(*data_lines(config, sources, val_sources))
    print_line(*[f"note: {sentence}" for sentence in validation_leaks(config, splits)])
    data, changed_data = check_data(config, splits, checkpoints, accepts_data)
    tokenizer = obtain_tokenizer(config, sources)
    require_truth(config, val_sources)
    labels = read_labels(checkpoints[-1], config) if checkpoints else None
    prepared = task_type.prepare(config, sources, labels)
    seed_everything(config.train.seed)
    with device:  # on the training device, so that initial values need no second copy
        task = build_task(config, tokenizer, prepared.labels)
    dataset = task_type.dataset(prepared.sources, config, tokenizer, training=True)

    new_parameters: Collection[str] | None = None
    if checkpoints:
        notes = changed_fields + changed_data
        new_parameters = checkpoint_files.read_state(checkpoints[-1]).get("new")
    else:
        notes = list(prepared.notes)
        if tokenizer.added:
            notes.append(f"the tokenizer has no {', '.join(tokenizer.added)} of its own: added")
    has_start = config.init is not None or config.scratch
    if has_start and new_parameters is None:
        new_parameters, start_notes = _start(config, task, dataset, device)
        notes += start_notes
    elif config.train.freeze and not checkpoints:
        notes.append(
            "train.freeze keeps random weights here; give weights to start from with --init RUN"
        )
    print_line(*cut_texts(config, tokenizer, sources))
    texts = {
        "config.json": config_to_json(config),
        "tokenizer.json": tokenizer.to_json(),
        **label_files(task),
        fingerprint.FILE: json.dumps(data, indent=1),
    }
    return Setup(
        task=task,
        tokenizer=tokenizer,
        dataset=dataset,
        sources=prepared.sources,
        val_sources=val_sources,
        texts=texts,
        new_parameters=new_parameters or (),
        notes=notes,
    )


def _start(
    config: Config, task: Task[Any], dataset: RowDataset, device: torch.device
) -> tuple[Collection[str], list[str]]:
    """Start from the weights of config.init; return the new parameters and notes."""
    new_parameters, note = start_from(config, task)
    notes = [note]
    if not config.scratch:
        temperatures = fit_temperatures(task, dataset, device)
        if temperatures:
            notes.append(temperatures)
    return new_parameters, notes


def _resumed_threads(run: Path) -> object:
    """Return the number of threads of the newest checkpoint; 0 for a new run."""
    checkpoints = checkpoint_folders.checkpoint_folders_of_main(run)
    if not checkpoints:
        return 0
    return checkpoint_files.read_state(checkpoints[-1]).get("threads", 0)


def _with_steps(config: Config, steps: int) -> Config:
    return dataclasses.replace(config, train=dataclasses.replace(config.train, steps=steps))


def _best_config(
    config: Config, evaluator: Evaluator[Any], numbers: dict[str, float]
) -> dict[str, str]:
    """Return the config of the best weights, with the settings that validation has chosen."""
    best = dataclasses.replace(config, task=evaluator.selected_settings(numbers))
    return {"config.json": config_to_json(best)}


def _training_rows_as_validation(config: Config, setup: Setup, evaluator: Evaluator[Any]) -> Any:
    """Return as many training rows as validation has, read as validation reads them."""
    num_val = min(config.data.val_samples, sum(map(len, setup.val_sources)))
    data = dataclasses.replace(config.data, val_samples=num_val, skip_invalid_val=True)
    return evaluator.dataset(setup.sources, dataclasses.replace(config, data=data), setup.tokenizer)


def _write_run_files(
    run: Path, texts: dict[str, str], device: torch.device, has_resumed: bool
) -> None:
    if not has_resumed:  # of an earlier run that a signal ended
        (run / BAD_SAMPLES).unlink(missing_ok=True)
    for name, text in texts.items():
        write_file(run / name, text)
    record_environment(run, device)
