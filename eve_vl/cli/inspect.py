"""The verb inspect: shapes, parameters and FLOPs of a recipe or a run."""

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table
from tyro.conf import Positional

from eve_vl.builtin.names import existing_folder
from eve_vl.cli.flags import JsonArgs
from eve_vl.cli.output_files import write_json
from eve_vl.cli.recipe_flags import recipe_config
from eve_vl.config import to_dict
from eve_vl.recipes.registry import is_recipe
from eve_vl.utils.errors import UserError, printable

if TYPE_CHECKING:
    from eve_vl.run.flops import Inspection


class InspectArgs(JsonArgs):
    """Flags of `eve inspect`."""

    run_or_recipe: Positional[str]
    """Run folder, or recipe: its name, FILE.py:NAME or the config.json of a run."""
    init: Path | None = None
    """Run from which a fine-tuning recipe starts; default: a recipe, which is printed."""


def run_inspect(args: InspectArgs) -> None:
    """Show shapes, parameters and FLOPs of a recipe or a run: eve inspect RECIPE|RUN."""
    inspected = _inspect(args)
    console = Console(emoji=False)
    console.print(_heading(inspected), highlight=False)
    console.print(_table(inspected))
    parameters = {
        **inspected.parameters,
        "total": sum(inspected.parameters.values()),
        "active": inspected.active_parameters,
    }
    values = {
        "parameters": parameters,
        "flops_per_pair_forward": inspected.flops,
        "flops_per_pair_step": inspected.flops_per_step,
        "config": to_dict(inspected.config),
    }
    write_json(args.json, values)


def _inspect(args: InspectArgs) -> "Inspection":
    """Return the sizes of the run or recipe that is named. Raises UserError."""
    from eve_vl.interop.run_names import path_of
    from eve_vl.run.flops import inspect_config, inspect_run

    path = path_of(args.run_or_recipe)
    is_file = path.suffix.partition(":")[0] in (".json", ".py")
    is_recipe_name = is_recipe("pretrain", args.run_or_recipe) or is_file
    if is_recipe_name or not (path.exists() or "/" in args.run_or_recipe):
        return inspect_config(recipe_config(args.run_or_recipe, args.init))
    if args.init is not None:
        raise UserError(f"--init has no effect: {path} is a run; leave it out")
    return inspect_run(existing_folder(path))


def _heading(inspected: "Inspection") -> str:
    sizes = inspected.config.input
    name = escape(printable(inspected.config.recipe))
    return (
        f"[bold]{name}[/bold]: {inspected.config.model}; "
        f"{sizes.image_size}² pixels in {sizes.num_patches} patches, "
        f"{sizes.text_length} text tokens"
    )


def _table(inspected: "Inspection") -> Table:
    """Return the parameters and FLOPs of each part, and their sums."""
    parameters = inspected.parameters
    flops = inspected.flops
    table = Table(
        "part",
        Column("parameters", justify="right"),
        Column("GFLOP per pair, forward", justify="right"),
    )

    def add_row(name: str, num_parameters: int, num_flops: float) -> None:
        table.add_row(name, f"{num_parameters:,}", f"{num_flops / 1e9:.3f}")

    for name in {**parameters, **flops}:
        add_row(name, parameters.get(name, 0), flops.get(name, 0.0))
    add_row("total", sum(parameters.values()), sum(flops.values()))
    add_row(
        "active per token / forward + backward",
        inspected.active_parameters,
        inspected.flops_per_step,
    )
    return table
