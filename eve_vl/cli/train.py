"""Verbs that train: pretrain, finetune."""

from argparse import ArgumentParser
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from eve_vl.cli.common import HELP, parse, say
from eve_vl.config import Config
from eve_vl.errors import UserError, nearest
from eve_vl.recipes import FINETUNE, PRETRAIN, get_finetune_recipe, get_recipe


@dataclass(frozen=True, kw_only=True)
class TrainArgs:
    """Flags of `eve pretrain` and `eve finetune`."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    resume: bool = False
    """Insist on going on with the run in --out. The same command without it goes on too, or starts if there is nothing yet."""


@dataclass(frozen=True, kw_only=True)
class DemoArgs:
    """Flags of `eve demo`."""

    out: Path = Path("runs/demo")
    """Folder of the runs, metrics.json and report.html; called again with the same, it goes on where it stopped."""


def run_pretrain(argv: Sequence[str]) -> None:
    """Pre-train by masked signal modelling: eve pretrain RECIPE [flags]."""
    if _wants_list(argv, "pretrain", PRETRAIN):
        return
    recipe = get_recipe(argv[0])
    if (
        not set(HELP) & set(argv[1:]) and (start := _init_config("pretrain", argv, recipe.out)) is not None
    ):  # the weights fit no other shape
        recipe = replace(recipe, input=start.input, model=start.model)
    _train("pretrain", argv, PRETRAIN[argv[0]].__doc__, recipe)


def run_finetune(argv: Sequence[str]) -> None:
    """Fine-tune for retrieval, VQA, NLVR2 or classification: eve finetune RECIPE --init RUN [flags]."""
    if _wants_list(argv, "finetune", FINETUNE):
        return
    unstarted = get_finetune_recipe(argv[0], get_recipe("base"))
    pretrained = _init_config("finetune", argv, unstarted.out)
    if pretrained is None and not set(HELP) & set(argv[1:]):
        raise UserError(f"eve finetune {argv[0]} needs --init RUN, to start from (with --scratch, from its shape alone)")
    config = unstarted if pretrained is None else get_finetune_recipe(argv[0], pretrained)
    _train("finetune", argv, FINETUNE[argv[0]].__doc__, config)


def run_demo(argv: Sequence[str]) -> None:
    """Pre-train, fine-tune, evaluate and report on built-in scenes: eve demo [--out runs/demo]."""
    args = parse(DemoArgs, argv, "eve demo", run_demo.__doc__)
    from eve_vl.demo import run_demo as run

    say(f"report: {run(args.out, Console(highlight=False, soft_wrap=True, emoji=False))}")


def _init_config(verb: str, argv: Sequence[str], out: Path) -> Config | None:
    """Return the config of the --init run, or of the run in --out if that can go on, which must be known before the flags can
    be parsed; None if no --init is named."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--init", nargs="?", type=Path)
    parser.add_argument("--out", nargs="?", type=Path, default=out)
    named = parser.parse_known_args(argv)[0]
    if named.init is None:
        return None
    if not set(HELP) & set(argv):
        say(f"eve {verb} {argv[0]}: starts from {named.init}")  # torch, which reading it imports, takes seconds
    from eve_vl.loading import read_config, settings_folder

    return read_config(settings_folder(named.init.expanduser(), "--scratch" in argv, (named.out or out).expanduser()))


def _train(verb: str, argv: Sequence[str], description: str | None, recipe: Config) -> None:
    args = parse(TrainArgs, argv[1:], f"eve {verb} {argv[0]}", description, default=TrainArgs(config=recipe))
    if args.config.init is not None and args.config.tokenizer != recipe.tokenizer:
        raise UserError("--tokenizer flags have no use with --init: that run's tokenizer comes along")
    train, val = (" ".join(specs) for specs in (args.config.data.train, args.config.data.val))
    say(f"eve {verb} {argv[0]}: trains on {train}, validates on {val}, writes to {args.config.out}")
    from eve_vl.training import train

    if train(args.config, must_resume=args.resume):
        from eve_vl.report import write_report

        say(f"report: {write_report(args.config.out)}")


def _wants_list(argv: Sequence[str], verb: str, recipes: Mapping[str, Callable[..., Config]]) -> bool:
    """List the recipes if that is what is asked for. Raises UserError if none of them is named."""
    if not argv or (argv[0].startswith("-") and argv[0] not in HELP):
        raise UserError(f"name a recipe: {', '.join(recipes)}")
    if argv[0] in recipes:
        return False
    if argv[0] not in HELP:
        raise UserError(f"no recipe {nearest(argv[0], recipes)}")
    width = max(map(len, recipes))
    lines = [f"  {name:{width}} {(recipe.__doc__ or '').splitlines()[0]}" for name, recipe in recipes.items()]
    usage = f"usage: eve {verb} RECIPE [flags]   (eve {verb} RECIPE --help lists the flags)"
    say("\n".join([usage, "", "recipes:", *lines]))
    return True
