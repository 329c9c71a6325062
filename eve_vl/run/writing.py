"""Run folders of weights that no training of this package has made."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from eve_vl.builtin.names import refuse_to_write
from eve_vl.config import Config, config_to_json
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.tasks.task import Task, label_files
from eve_vl.train import best_folder
from eve_vl.utils.errors import UserError
from eve_vl.utils.file_io import atomic_folder, reporting_write_errors

# of the field tokenizer.vocab_size
MIN_VOCAB_SIZE = 261
MAX_VOCAB_SIZE = 64_000


def check_new(run: Path) -> None:
    """Raise UserError if a run folder cannot be written there."""
    refuse_to_write(run)
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise UserError(f"{run}: already exists; name a new folder")
    with reporting_write_errors(run):
        run.parent.mkdir(parents=True, exist_ok=True)


def write_run(
    run: Path,
    config: Config,
    tokenizer: Tokenizer,
    task: Task[Any],
    check: Callable[[Path], None] = lambda _: None,
) -> None:
    """Write an atomic run folder of weights from elsewhere.

    check: called with the written folder before it gets its name; if it raises UserError, nothing
    is left. Raises UserError.
    """
    check_new(run)
    write_weights(run, config, tokenizer, task, step=0, check=check)


def write_weights(
    run: Path,
    config: Config,
    tokenizer: Tokenizer,
    task: Task[Any],
    *,
    step: int,
    check: Callable[[Path], None] = lambda _: None,
    files: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write an atomic run folder, in place of one that is there. Raises UserError.

    files: further texts by file name.
    """
    vocab_size = min(max(tokenizer.vocab_size, MIN_VOCAB_SIZE), MAX_VOCAB_SIZE)
    config = replace(config, tokenizer=replace(config.tokenizer, vocab_size=vocab_size))
    texts = {
        "config.json": config_to_json(config),
        "tokenizer.json": tokenizer.to_json(),
        **label_files(task),
    }
    with reporting_write_errors(run), atomic_folder(run) as folder:
        best_folder.save_best(folder, step=step, model=task.state_dict(), texts=texts, numbers={})
        for name, text in {**texts, **files}.items():
            (folder / name).write_text(text, encoding="utf-8")
        check(folder)
