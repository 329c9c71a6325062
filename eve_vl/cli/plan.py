"""The verb plan: memory and traffic of a recipe on GPUs, by layout."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Column, Table

from eve_vl.cli.flags import JsonArgs
from eve_vl.cli.help_lists import asks_for_help
from eve_vl.cli.output_files import write_json
from eve_vl.cli.recipe_flags import parse_with_recipe, refuse_changed
from eve_vl.config import Config, flat, to_dict
from eve_vl.utils.console import print_line
from eve_vl.utils.errors import UserError

USED_SECTIONS = ("input.", "model.", "task.", "tokenizer.")
USED_FIELDS = {
    "data.modality",
    "train.batch_size",
    "train.optimizer",
    "train.ema_decay",
    "train.dtype",
    "train.freeze",
}


class PlanArgs(JsonArgs):
    """Flags of `eve plan`."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    gpus: int = 8
    """GPUs of all machines."""
    per_machine: int = 8
    """GPUs of a machine."""
    memory: float = 80.0
    """GiB of a GPU's memory."""


def run_plan(argv: Sequence[str]) -> None:
    """Show memory and traffic of a recipe on GPUs: eve plan RECIPE [flags]."""
    if not asks_for_help(argv) and (not argv or argv[0].startswith("-")):
        raise UserError(
            "name a recipe first, for example eve plan base; "
            "eve help pretrain and eve help finetune list all"
        )
    words = parse_with_recipe(PlanArgs, argv, "plan", run_plan.__doc__)
    args = words.args
    if args.gpus < 1 or args.per_machine < 1 or args.memory <= 0:
        raise UserError(
            f"--gpus {args.gpus}, --per-machine {args.per_machine}, --memory {args.memory:g}: "
            "must be positive"
        )
    refuse_changed(args.config, words.recipe, _unused_fields(words.recipe), "the plan")
    from eve_vl.run.plan import command, plan

    layouts = plan(args.config, args.gpus, args.per_machine, args.memory * 2**30)
    columns = [Column(layout.name, justify="right", max_width=12) for layout in layouts]
    largest = max(sum(layout.memory.values()) for layout in layouts)
    unit = "GiB" if largest >= 2**30 else "MiB"
    cells = [layout.cells(2**30 if unit == "GiB" else 2**20) for layout in layouts]
    table = Table(f"{unit} of memory per GPU", *columns)
    for row in cells[0]:
        table.add_row(row, *(cells_of_layout[row] for cells_of_layout in cells))
    Console(emoji=False).print(table)
    print_line(
        "replicate: each GPU holds all weights; shard: the GPUs of a machine share them; "
        "recomputed: slower"
    )
    print_line(
        "micro-batches: in a step; rows: of a GPU in each; sent: in a step",
        command(words.name, words.recipe, args.config, layouts),
    )
    write_json(args.json, {"layouts": [dataclasses.asdict(layout) for layout in layouts]})


def _unused_fields(recipe: Config) -> list[str]:
    """Return the fields of a config that have no effect on a plan."""
    fields = []
    for field in flat(to_dict(recipe)):
        if not field.startswith(USED_SECTIONS) and field not in USED_FIELDS:
            fields.append(field)
    return fields
