"""Run folders of weights from elsewhere, and averages of runs."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from eve_vl.builtin.names import refuse_to_write
from eve_vl.config import Config, config_to_json, flat, to_dict
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.run.loading import LoadedRun, load_run
from eve_vl.tasks.task import Task, label_files
from eve_vl.train import checkpoint
from eve_vl.utils.errors import UserError
from eve_vl.utils.file_io import atomic_folder, reporting_write_errors


def check_new(run: Path) -> None:
    """Raise UserError if a run folder cannot be written there."""
    refuse_to_write(run)
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise UserError(f"{run}: already exists; name a new folder")
    with reporting_write_errors(run):
        run.parent.mkdir(parents=True, exist_ok=True)


def write_run(run: Path, config: Config, tokenizer: Tokenizer, task: Task[Any]) -> None:
    """Write an atomic run folder of weights from elsewhere. Raises UserError."""
    check_new(run)
    _write(run, config, tokenizer, task, 0)


def _write(run: Path, config: Config, tokenizer: Tokenizer, task: Task[Any], step: int) -> None:
    bound = min(max(tokenizer.vocab_size, 261), 64_000)  # the limits of tokenizer.vocab_size
    config = replace(config, tokenizer=replace(config.tokenizer, vocab_size=bound))
    texts = {
        "config.json": config_to_json(config),
        "tokenizer.json": tokenizer.to_json(),
        **label_files(task),
    }
    with reporting_write_errors(run), atomic_folder(run) as folder:
        checkpoint.save_best(folder, step=step, model=task.state_dict(), texts=texts, numbers={})
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")


def average(runs: Sequence[Path], out: Path, *, replaces: bool = False) -> None:
    """Write a run whose weights are the mean of several runs' weights.

    The means of fine-tunings that start from the same weights are often better than each of them (Wortsman et al. 2022, "Model
    soups"). replaces: an earlier average in `out`. Raises UserError for runs of other models, tasks, starts, training data,
    tokenizers or labels.
    """
    if not replaces:
        check_new(out)
    first = load_run(runs[0])
    step, total = (
        first.step,
        {name: tensor.double() for name, tensor in first.task.state_dict().items()},
    )
    for path in runs[1:]:
        run = load_run(path)
        ours, theirs = _compared(first), _compared(run)
        if unlike := [name for name in ours | theirs if ours.get(name) != theirs.get(name)]:
            more = f" and {len(unlike) - 3} more" * (len(unlike) > 3)
            both = f"differs from {runs[0]} in {', '.join(unlike[:3])}{more}"
            raise UserError(
                f"{path}: {both}; average runs that started alike, such as fine-tunings with several seeds"
            )
        step += run.step
        for name, tensor in run.task.state_dict().items():
            total[name] += tensor
    first.task.load_state_dict({name: tensor / len(runs) for name, tensor in total.items()})
    config = replace(first.config, out=out, train=replace(first.config.train, steps=step))
    _write(out, config, first.tokenizer, first.task, step)


def _compared(run: LoadedRun) -> dict[str, Any]:
    """Return what runs with a useful average have in common.

    Re-ranking is chosen by validation after training.
    """
    parts = (
        "init",
        "scratch",
        "input.",
        "model.",
        "task.",
        "data.train",
        "data.val",
        "data.test",
        "data.split",
    )
    fields = {
        name: value for name, value in flat(to_dict(run.config)).items() if name.startswith(parts)
    }
    found = {name: value for name, value in fields.items() if not name.startswith("task.rerank")}
    return found | {"tokenizer": run.tokenizer.to_json(), "labels": run.task.sizes.labels}
