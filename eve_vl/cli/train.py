"""The verbs pretrain and finetune: train a recipe."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import tyro
from rich.prompt import Confirm
from rich.text import Text

from eve_vl.cli.help_lists import HELP, asks_for_help, print_list
from eve_vl.cli.parsing import parse
from eve_vl.cli.recipe_flags import early_flags, refuse_unused
from eve_vl.config import Config
from eve_vl.config.generated_sources import generated
from eve_vl.config.plugins import installed, origins, package_of
from eve_vl.data.source_names import refuse_missing
from eve_vl.recipes import get_recipe, recipes
from eve_vl.recipes.registry import at_random_weights, find_recipe
from eve_vl.utils.console import print_line
from eve_vl.utils.errors import UserError, printable
from eve_vl.utils.file_io import expand_user
from eve_vl.utils.frozen import Frozen
from eve_vl.utils.launcher import is_under_torchrun

ADVICE = {
    "pretrain": (
        "demo for your own image–text pairs, tiny for a quick try, base for the paper's size"
    ),
    "finetune": (
        "search_small, questions_small, statements_small or labels_small for your own images, "
        "vqa for the paper's size"
    ),
}
"""Recipes to begin with."""


class TrainArgs(Frozen):
    """Flags of `eve pretrain` and `eve finetune`."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    resume: bool = False
    """Fail unless there is a run to resume in --out. Without this flag the command resumes it, or
    starts a new one."""
    accept_changed_data: bool = False
    """Resume although rows of the training or validation data have changed; the log and the report
    note it."""


def run_pretrain(argv: Sequence[str]) -> None:
    """Pre-train with masked signal modelling: eve pretrain RECIPE [flags]."""
    make_recipe = _named_recipe("pretrain", argv)
    if make_recipe is None:
        return
    recipe = make_recipe()
    start = _start_config("pretrain", argv, recipe.out)
    init = early_flags(argv).init
    if start is not None and init is not None:  # its weights need its shape
        from eve_vl.run.weight_transfer import in_its_shape

        recipe = in_its_shape(recipe, start, init)
    _train("pretrain", argv, make_recipe.__doc__, recipe, start)


def run_finetune(argv: Sequence[str]) -> None:
    """Fine-tune a run, or random weights, on a task: eve finetune RECIPE --init RUN [flags]."""
    make_recipe = _named_recipe("finetune", argv)
    if make_recipe is None:
        return
    description = make_recipe.__doc__
    recipe = make_recipe(get_recipe(getattr(make_recipe, "start", "base")))
    start = _start_config("finetune", argv, recipe.out)
    is_config_of_run = argv[0].endswith(".json")  # it has its own --init
    if start is not None:
        recipe = make_recipe(start)
        if is_config_of_run:
            recipe = _with_shape_of(recipe, start)
    elif asks_for_help(argv[1:]):
        recipe = replace(recipe, init=tyro.MISSING)
        description = (
            f"{description}\n\nDefaults of --input, --model and --tokenizer below are from the "
            "usual start; a run takes these values from --init. "
            f"eve help finetune {argv[0]} --init RUN shows those of RUN."
        )
    elif "--scratch" in argv and not is_config_of_run:
        recipe = at_random_weights(make_recipe)
    elif not is_config_of_run:
        raise UserError(
            f"eve finetune {argv[0]} needs --init RUN to start from, "
            "or --scratch to start from random weights"
        )
    _train("finetune", argv, description, recipe, start)


def _with_shape_of(recipe: Config, start: Config) -> Config:
    """Return a recipe with the shape and tokenizer of a run, and its own image size."""
    sizes = replace(start.input, image_size=recipe.input.image_size)
    return replace(recipe, input=sizes, model=start.model, tokenizer=start.tokenizer)


def _named_recipe(verb: str, argv: Sequence[str]) -> Callable[..., Config] | None:
    """Return the named recipe; for help, print the list and return None. Raises UserError."""
    if not argv or (argv[0].startswith("-") and argv[0] not in HELP):
        num_recipes = len(recipes(verb))
        raise UserError(f"name a recipe: {ADVICE[verb]}; eve help {verb} lists all {num_recipes}")
    if argv[0] not in HELP:
        return find_recipe(verb, argv[0])
    _print_recipes(verb)
    return None


def _print_recipes(verb: str) -> None:
    texts = {}
    for name, recipe in recipes(verb).items():
        text = (recipe.__doc__ or " ").splitlines()[0]
        if origins(recipe):
            text += f" ({package_of(installed('recipes')[name])})"
        texts[name] = text
    usage = (
        f"usage: eve {verb} RECIPE [flags]   (eve {verb} RECIPE --help lists the flags)\n\n"
        f"recipes: {ADVICE[verb]}"
    )
    print_list(usage, texts, "or a recipe of your own, FILE.py:NAME, or the config.json of a run")


def _start_config(verb: str, argv: Sequence[str], out: Path) -> Config | None:
    """Return the config of the --init run, or of a resumed run; None without --init."""
    flags = early_flags(argv)
    if flags.init is None:
        return None
    if not asks_for_help(argv[1:]):  # reading it imports torch, which takes seconds
        print_line(f"eve {verb} {argv[0]}: starts from {flags.init}")
    from eve_vl.run.loading import read_config
    from eve_vl.run.start_folder import settings_folder

    init = expand_user(flags.init)
    out = expand_user(flags.out or out)
    _obtain_start(init, out)
    return read_config(settings_folder(init, "--scratch" in argv, out))


def _obtain_start(init: Path, out: Path) -> None:
    """Download a published model to start from, unless `out` can resume.

    Raises UserError if there is no such run.
    """
    from eve_vl.interop.run_names import run_path
    from eve_vl.train.checkpoint_folders import checkpoint_folders

    if not checkpoint_folders(out):
        run_path(init)


def _train(
    verb: str, argv: Sequence[str], description: str | None, recipe: Config, start: Config | None
) -> None:
    """Parse the flags, check them, train and write a report. Raises UserError."""
    prog = f"eve {verb} {argv[0]}"
    args = parse(TrainArgs, argv[1:], prog, description, default=TrainArgs(config=recipe))
    config = args.config
    if config.init is not None and config.tokenizer != recipe.tokenizer:
        raise UserError(
            "--tokenizer flags have no effect with --init: "
            "the run keeps the tokenizer of --init; leave them out"
        )
    refuse_unused(config, recipe)
    refuse_missing(config.data.train + config.data.val)
    train_data = " ".join(config.data.train)
    val_data = " ".join(config.data.val)
    print_line(f"{prog}: trains on {train_data}, validates on {val_data}, writes to {config.out}")
    if start is not None and not _names_training_data(argv):
        _confirm_data(config, start)
    from eve_vl.run.training import train

    if config.init is not None:
        _obtain_start(expand_user(config.init), expand_user(config.out))
    is_trained = train(config, must_resume=args.resume, accepts_data=args.accept_changed_data)
    if is_trained:
        from eve_vl.report.page import write_report

        print_line(f"report: {write_report(config.out)}")


def _names_training_data(argv: Sequence[str]) -> bool:
    flags = [word.partition("=")[0].replace("_", "-") for word in argv]
    return "--data.train" in flags


def _confirm_data(config: Config, start: Config) -> None:
    """Ask before built-in data replaces the user's own data of the --init run.

    Raises UserError if the answer is no, or without a terminal.
    """
    recipe_data = " ".join(config.data.train)
    start_data = " ".join(start.data.train)
    print_line(
        f"training on {recipe_data}, the recipe's data; --data.train PATH selects other data"
    )
    started_on_generated_data = any(map(generated, start.data.train))
    if started_on_generated_data or not all(map(generated, config.data.train)):
        return
    problem = printable(
        f"{config.init} was trained on {start_data}, "
        f"but this recipe trains on built-in data ({recipe_data})"
    )
    can_ask = sys.stdin.isatty() and not is_under_torchrun()
    if not can_ask or not Confirm.ask(Text(f"{problem}. Continue?", "prompt"), default=False):
        raise UserError(
            f"{problem}; name your data with --data.train PATH and --data.val, "
            f"or confirm with --data.train {recipe_data}"
        )
