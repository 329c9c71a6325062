"""The verb bench: the speed of a recipe's training step."""

from collections.abc import Sequence
from typing import Annotated

import tyro

from eve_vl.cli.flags import JsonArgs
from eve_vl.cli.output_files import write_json
from eve_vl.cli.recipe_flags import parse_with_recipe, refuse_changed
from eve_vl.config import Config
from eve_vl.utils.console import print_line
from eve_vl.utils.errors import UserError

UNUSED_FIELDS = (
    "out",
    "init_allow_missing",
    "scratch",
    "data.val",
    "data.val_fraction",
    "data.val_samples",
    "data.skip_invalid_val",
    "data.num_workers",
    "data.max_invalid_fraction",
    "train.steps",
    "train.log_every",
    "train.val_every",
    "train.patience",
    "train.save_every",
    "train.keep_checkpoints",
    "data.split_file",
)


class BenchArgs(JsonArgs):
    """Flags of `eve bench`."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    steps: int = 10
    """Steps to time, after some warm-up steps."""


def run_bench(argv: Sequence[str]) -> None:
    """Measure the speed of a recipe's training step: eve bench [RECIPE] [flags]."""
    words = parse_with_recipe(BenchArgs, argv, "bench", run_bench.__doc__)
    args = words.args
    if args.steps < 1:
        raise UserError(f"--steps: must be positive ({args.steps} given)")
    refuse_changed(args.config, words.recipe, UNUSED_FIELDS, "the speed of a step")
    from eve_vl.run.bench import bench, lines

    measured = bench(args.config, args.steps)
    print_line(f"{words.name} on {measured['machine']}", *lines(measured))
    write_json(args.json, measured)
