"""Verbs that train a recipe or average runs: pretrain, finetune, demo, average."""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import tyro
from rich.prompt import Confirm
from rich.text import Text
from tyro.conf import Positional

from eve_vl.cli.common import HELP, parse, print_line, print_list
from eve_vl.config import Config
from eve_vl.config.generated_sources import generated
from eve_vl.config.plugins import installed, origins, package_of
from eve_vl.data.source_names import refuse_missing
from eve_vl.recipes import get_recipe, recipes
from eve_vl.recipes.registry import find_recipe
from eve_vl.utils.errors import UserError, printable
from eve_vl.utils.file_io import expand_user
from eve_vl.utils.frozen import Frozen
from eve_vl.utils.launcher import is_under_torchrun

FIRST = {
    "pretrain": "demo for your own image–text pairs, tiny for a quick try, base for the paper's size",
    "finetune": "search_small, questions_small, statements_small or labels_small for your own images, vqa for the paper's size",
}


class TrainArgs(Frozen):
    """Flags of `eve pretrain` and `eve finetune`."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    resume: bool = False
    """Fail unless there is a run to resume in --out. Without this flag the command resumes it, or starts a new one."""
    accept_changed_data: bool = False
    """Resume although rows of the training or validation data have changed; the log and the report note it."""


class AverageArgs(Frozen):
    """Flags of `eve average`."""

    runs: Positional[tuple[Path, ...]]
    """Run folders, or their checkpoints, that started from the same weights."""
    out: Path
    """New run folder."""


class DemoArgs(Frozen):
    """Flags of `eve demo`."""

    out: Path = Path("runs/demo")
    """Folder of the runs, metrics.json and report.html; the same command resumes after an interruption."""


def run_pretrain(argv: Sequence[str]) -> None:
    """Pre-train with masked signal modelling: eve pretrain RECIPE [flags]."""
    if (make := _chosen("pretrain", argv)) is None:
        return
    recipe = make()
    start = _init_config("pretrain", argv, recipe.out)
    if start is not None:  # its weights need its shape
        from eve_vl.run.weight_transfer import in_its_shape

        recipe = in_its_shape(recipe, start, early_flags(argv).init)
    _train("pretrain", argv, make.__doc__, recipe, start)


def run_finetune(argv: Sequence[str]) -> None:
    """Fine-tune a run on a task: eve finetune RECIPE --init RUN [flags]."""
    if (make := _chosen("finetune", argv)) is None:
        return
    description = make.__doc__
    recipe = make(get_recipe(getattr(make, "start", "base")))
    start = _init_config("finetune", argv, recipe.out)
    is_of_run = argv[0].endswith(".json")  # it has its own --init
    if start is not None:
        recipe = make(start)
        if is_of_run:
            sizes = replace(start.input, image_size=recipe.input.image_size)
            recipe = replace(recipe, input=sizes, model=start.model, tokenizer=start.tokenizer)
    elif {*HELP} & {*argv[1:]}:
        recipe = replace(recipe, init=tyro.MISSING)
        shown = "Defaults of --input, --model and --tokenizer below are from the usual start; a run takes these values"
        description = f"{description}\n\n{shown} from --init. eve help finetune {argv[0]} --init RUN shows those of RUN."
    elif not is_of_run:
        raise UserError(
            f"eve finetune {argv[0]} needs --init RUN to start from; --scratch takes only its shape"
        )
    _train("finetune", argv, description, recipe, start)


def run_average(args: AverageArgs) -> None:
    """Average the weights of fine-tunings of one run: eve average RUN RUN … --out RUN."""
    if len({run.absolute() for run in args.runs}) < max(2, len(args.runs)):
        raise UserError(
            "name at least two runs, each once, for example eve average runs/seed_0 runs/seed_1 --out runs/average"
        )
    from eve_vl.interop.run_names import run_path
    from eve_vl.run.average_runs import average

    average([run_path(run) for run in args.runs], expand_user(args.out))
    print_line(f"{args.out}: the average of {len(args.runs)} runs")


def run_demo(args: DemoArgs) -> None:
    """Pre-train, fine-tune and compare on built-in scenes: eve demo [--out runs/demo]."""
    from eve_vl.demo import run_demo as run

    print_line(f"report: {run(args.out)}")


def early_flags(argv: Sequence[str]) -> Namespace:
    """Return the flags that are needed before all flags can be parsed."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--init", nargs="?", type=Path)
    parser.add_argument("--out", nargs="?", type=Path)
    return parser.parse_known_args(argv)[0]


def _init_config(verb: str, argv: Sequence[str], out: Path) -> Config | None:
    """Return the config of the --init run, or of a resumed run; None without --init."""
    named = early_flags(argv)
    if named.init is None:
        return None
    if not {*HELP} & {*argv[1:]}:
        print_line(
            f"eve {verb} {argv[0]}: starts from {named.init}"
        )  # reading it imports torch, which takes seconds
    from eve_vl.run.loading import read_config
    from eve_vl.run.start_folder import settings_folder

    init = expand_user(named.init)
    out = expand_user(named.out or out)
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
    args = parse(
        TrainArgs, argv[1:], f"eve {verb} {argv[0]}", description, default=TrainArgs(config=recipe)
    )
    config = args.config
    if config.init is not None and config.tokenizer != recipe.tokenizer:
        raise UserError(
            "--tokenizer flags have no effect with --init: the run keeps the tokenizer of --init; leave them out"
        )
    refuse_unused(config, recipe)
    refuse_missing(config.data.train + config.data.val)
    train_data, val = (" ".join(specs) for specs in (config.data.train, config.data.val))
    print_line(
        f"eve {verb} {argv[0]}: trains on {train_data}, validates on {val}, writes to {config.out}"
    )
    if start is not None and not any(
        word.partition("=")[0].replace("_", "-") == "--data.train" for word in argv
    ):
        _confirm_data(config, start)
    from eve_vl.run.training import train

    if config.init is not None:
        _obtain_start(expand_user(config.init), expand_user(config.out))
    if train(config, must_resume=args.resume, accepts_data=args.accept_changed_data):
        from eve_vl.report.page import write_report

        print_line(f"report: {write_report(config.out)}")


def refuse_unused(config: Config, recipe: Config) -> None:
    """Refuse given values without effect; the recipe's own values may have none."""
    problems = [
        f"--{name}.{field} has no effect {why}; leave it out".replace("_", "-")
        for name in ("model", "task", "data", "tokenizer")
        for field, why in getattr(config, name).unused_fields().items()
        if getattr(getattr(config, name), field) != getattr(getattr(recipe, name), field)
    ]
    if problems:
        raise UserError("; ".join(problems))


def _confirm_data(config: Config, start: Config) -> None:
    """Ask before built-in data replaces the user's own data of the --init run.

    Raises UserError if the answer is no, or without a terminal.
    """
    own, before = " ".join(config.data.train), " ".join(start.data.train)
    print_line(f"training on {own}, the recipe's data; --data.train PATH selects other data")
    if any(map(generated, start.data.train)) or not all(map(generated, config.data.train)):
        return
    what = printable(
        f"{config.init} was trained on {before}, but this recipe trains on built-in data ({own})"
    )
    is_asked = sys.stdin.isatty() and not is_under_torchrun()
    if not is_asked or not Confirm.ask(Text(f"{what}. Continue?", "prompt"), default=False):
        raise UserError(
            f"{what}; name your data with --data.train PATH and --data.val, or confirm with --data.train {own}"
        )


def _chosen(verb: str, argv: Sequence[str]) -> Callable[..., Config] | None:
    """Return the named recipe; for help, print the list and return None."""
    if not argv or (argv[0].startswith("-") and argv[0] not in HELP):
        raise UserError(
            f"name a recipe: {FIRST[verb]}; eve help {verb} lists all {len(recipes(verb))}"
        )
    if argv[0] not in HELP:
        return find_recipe(verb, argv[0])
    known = recipes(verb)
    texts = {name: (recipe.__doc__ or " ").splitlines()[0] for name, recipe in known.items()}
    texts |= {
        name: f"{texts[name]} ({package_of(installed('recipes')[name])})"
        for name in known
        if origins(known[name])
    }
    usage = f"usage: eve {verb} RECIPE [flags]   (eve {verb} RECIPE --help lists the flags)\n\nrecipes: {FIRST[verb]}"
    print_list(usage, texts, "or a recipe of your own, FILE.py:NAME, or the config.json of a run")
    return None
