"""Checks before a run starts or resumes: its folder, the fields of its config and its data."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eve_vl.config import Config, flat, to_dict
from eve_vl.data import fingerprint
from eve_vl.data.records import Source, usable_rows
from eve_vl.data.source_names import explain_missing
from eve_vl.data.splits import Splits
from eve_vl.run.equal_processes import require_equal_data
from eve_vl.run.loading import read_config
from eve_vl.tasks.task import task_class
from eve_vl.train import checkpoint_files, checkpoint_folders, processes
from eve_vl.train.learning_rate import learning_rate
from eve_vl.utils.errors import UserError

MAX_ROWS_FOR_TRUTH = 100
FREE_TRAIN_FIELDS = (
    "device",
    "threads",
    "log_every",
    "save_every",
    "keep_checkpoints",
    "steps",
    "val_every",
    "patience",
    "accumulation",
    "layout",
)
FREE_DATA_FIELDS = ("num_workers", "max_invalid_fraction", "skip_invalid_val", "val_samples")
OPERATIONAL = {
    "out",
    "code",
    *(f"train.{name}" for name in FREE_TRAIN_FIELDS),
    *(f"data.{name}" for name in FREE_DATA_FIELDS),
}
"""Fields that a resumed run may change, since they do not affect the steps so far.

accumulation changes the steps to come by rounding and by what is computed per micro-batch
(docs/design_choices.md), layout by rounding.
"""


def check_out_folder(config: Config, must_resume: bool) -> list[str]:
    """Refuse to resume a folder that holds another run, or to start without a file.

    Returns sentences on fields that may change and did. Raises UserError with the fields that
    differ, or with a missing file that a new run needs: now, because reading data may take long.
    """
    checkpoints = checkpoint_folders.checkpoint_folders_of_main(config.out)
    if not checkpoints:
        _check_new_run(config, must_resume)
        return []
    before = read_config(config.out)
    if before.recipe != config.recipe:
        recipes = f"recipe {before.recipe!r}, not {config.recipe!r}"
        raise UserError(f"{config.out}: holds a run of {recipes}; choose another folder with --out")
    refused, allowed = changes(before, config, checkpoint_files.read_state(checkpoints[-1])["step"])
    if refused:
        fix = "give the same flags to resume, or choose another folder with --out"
        raise UserError(f"{config.out}: holds a run with other values: {'; '.join(refused)}; {fix}")
    return allowed


def _check_new_run(config: Config, must_resume: bool) -> None:
    """Raise UserError if a new run cannot start in this folder, or a file that it needs is
    missing."""
    if must_resume:
        raise UserError(
            f"{config.out}: nothing to resume, it holds no checkpoint; leave --resume out to start"
        )
    if (config.out / "plan.json").is_file() and (config.out / "probe").is_dir():
        raise UserError(
            f"{config.out}: is a folder of eve learn, which holds runs; choose another folder "
            "with --out"
        )
    for section in ("data", "task", "tokenizer"):
        for field, path in vars(getattr(config, section)).items():
            if isinstance(path, Path) and not path.exists():
                raise UserError(f"{section}.{field}: {explain_missing(path)}")


def changes(before: Config, now: Config, step: int) -> tuple[list[str], list[str]]:
    """Compare the configs of a run at `step` and of its continuation.

    Returns the changed fields that must not change, `old → new` each, and sentences on those that
    may.
    """
    old_values = flat(to_dict(before))
    new_values = flat(to_dict(now))
    refused: list[str] = []
    allowed: list[str] = []
    for name in sorted({*old_values, *new_values}):
        old_value = old_values.get(name)
        new_value = new_values.get(name)
        if old_value == new_value:
            continue
        change = f"{name} {_value_text(old_value)} → {_value_text(new_value)}"
        if name not in OPERATIONAL:
            refused.append(change)
        elif name != "out":
            allowed.append(change)
    if now.train.steps < step:
        refused.append(f"train.steps {now.train.steps}, below step {step}, which it has reached")
    elif before.train.steps != now.train.steps:
        old_rate = learning_rate(step, before.train)
        new_rate = learning_rate(step, now.train)
        allowed.append(
            f"the learning rate follows the schedule of {now.train.steps:,} steps from here on: "
            f"at step {step:,} it goes from {old_rate:.3g} to {new_rate:.3g}"
        )
    return refused, allowed


def _value_text(value: object) -> str:
    if isinstance(value, list):
        return " ".join(map(_value_text, value)) or "none"
    return str(value)


def check_data(
    config: Config, splits: Splits, checkpoints: Sequence[Path], accepts: bool
) -> tuple[dict[str, Any], list[str]]:
    """Return the fingerprint of all sources, and a sentence if they have changed.

    checkpoints: the newest has the fingerprint to compare with. Raises UserError for a change that
    is not accepted, or if processes read different rows.
    """
    names = [f"training data {name}" for name in splits.train_names]
    names += [f"{fingerprint.VALIDATION} {name}" for name in splits.val_names]
    sources = [*splits.train, *splits.val]
    prints_of_processes = processes.from_each(
        lambda: fingerprint.of_sources(zip(names, sources, strict=True))
    )
    require_equal_data(prints_of_processes)
    now: dict[str, Any] = {"version": fingerprint.VERSION} | prints_of_processes[0]
    before = fingerprint.read(checkpoints[-1]) if checkpoints else {}
    difference = fingerprint.difference(before, now) if before else ""
    if not difference:
        if accepts:
            raise UserError(
                f"{config.out}: --accept-changed-data has no effect, because no data has changed; "
                "leave it out"
            )
        return now, []
    change = f"its data has changed: {difference}"
    if not accepts:
        fix = "restore the data, choose another folder with --out, or give --accept-changed-data"
        raise UserError(f"{config.out}: {change}; {fix}")
    return now, [change]


def require_truth(config: Config, val_sources: Sequence[Source[Any]]) -> None:
    """Raise UserError if no best weights can be chosen.

    The first validation rows then have no labels or answers.
    """
    dataset = task_class(type(config.task)).dataset
    truth = dataset.truth.removesuffix("s")
    if not truth:
        return
    for source in val_sources:
        first_rows = range(min(len(source), MAX_ROWS_FOR_TRUTH))
        if any(dataset.has_truth(row) for _, row in usable_rows(source, first_rows)):
            return
    raise UserError(
        f"data.val {' '.join(config.data.val)}: no {truth} in the first {MAX_ROWS_FOR_TRUTH} "
        "validation rows, "
        "so the best weights cannot be chosen; name validation data that has them, "
        "or the column that has them with --data.label-column"
    )


def check_batch_size(config: Config, world_size: int) -> None:
    """Raise UserError for a batch that does not divide into micro-batches, or into too small
    ones."""
    train = config.train
    num_parts = train.accumulation * world_size
    if train.batch_size % num_parts:
        raise UserError(
            f"train.batch_size {train.batch_size} is not divisible by train.accumulation "
            f"{train.accumulation} × {world_size} processes; give a batch size that is a multiple "
            f"of {num_parts}, or start another number of processes"
        )
    problems = config.task.problems_with_pairs(train.batch_size // num_parts)
    if problems:
        fix = (
            f"of each of {world_size} processes: raise train.batch_size or lower train.accumulation"
        )
        raise UserError(f"task.{'; task.'.join(problems)} {fix}")
