"""What verbs about a recipe share: its config, and flags that have no effect."""

from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

from eve_vl.cli.help_lists import HELP, asks_for_help
from eve_vl.cli.parsing import parse
from eve_vl.config import Config, flat, to_dict
from eve_vl.recipes import get_recipe
from eve_vl.recipes.registry import EITHER, find_recipe, start_of
from eve_vl.utils.console import print_line
from eve_vl.utils.errors import UserError

DEFAULT_RECIPE = "demo"
SECTIONS = ("model", "task", "data", "tokenizer")

Args = TypeVar("Args")


@dataclass(frozen=True)
class EarlyFlags:
    """Flags that are needed before all flags can be parsed."""

    init: Path | None
    out: Path | None


@dataclass(frozen=True)
class RecipeWords(Generic[Args]):
    """What the words after a verb say: a recipe and its flags."""

    name: str
    recipe: Config
    """The config without the flags."""
    args: Args


def early_flags(argv: Sequence[str]) -> EarlyFlags:
    """Return the flags that are needed before all flags can be parsed."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--init", nargs="?", type=Path)
    parser.add_argument("--out", nargs="?", type=Path)
    flags, _ = parser.parse_known_args(argv)
    return EarlyFlags(init=flags.init, out=flags.out)


def parse_with_recipe(
    cls: type[Args], argv: Sequence[str], verb: str, description: str | None
) -> RecipeWords[Args]:
    """Parse an optional recipe and the flags of a verb about it. Raises UserError."""
    name = DEFAULT_RECIPE
    words = list(argv)
    if words and not words[0].startswith("-") and words[0] not in HELP:
        name = words.pop(0)
    init = early_flags(words).init
    recipe = recipe_config(name, init)
    if init is None:  # there is no run whose layers could be compared
        recipe = replace(recipe, init=None, train=replace(recipe.train, head_lr_multiplier=1.0))
    default = cls(config=recipe)  # pyright: ignore[reportCallIssue]
    shown_name = "RECIPE" if asks_for_help(argv) and name not in argv else name
    args = parse(cls, words, f"eve {verb} {shown_name}", description, default=default)
    refuse_unused(args.config, recipe)  # pyright: ignore[reportAttributeAccessIssue]
    return RecipeWords(name, recipe, args)


def recipe_config(name: str, init: Path | None) -> Config:
    """Return a recipe's config; print what a fine-tuning recipe starts from.

    init: run to start from; default: a pre-training recipe. Raises UserError.
    """
    recipe = find_recipe(EITHER, name)
    start = start_of(name, recipe)
    if start is None:
        if init is not None:
            raise UserError(
                f"--init has no effect: {name} is not a fine-tuning recipe; leave it out"
            )
        return recipe()
    if init is None:
        print_line(f"{name}: starts from the recipe {start}; --init RUN selects a run")
        return recipe(get_recipe(start))
    print_line(f"{name}: starts from {init}")
    from eve_vl.interop.run_names import run_path
    from eve_vl.run.loading import read_config
    from eve_vl.train.checkpoint_folders import chosen_checkpoint

    return recipe(read_config(chosen_checkpoint(run_path(init))))


def refuse_unused(config: Config, recipe: Config) -> None:
    """Refuse given values without effect; the recipe's own values may have none."""
    problems = []
    for name in SECTIONS:
        section = getattr(config, name)
        for field, reason in section.unused_fields().items():
            if getattr(section, field) != getattr(getattr(recipe, name), field):
                problem = f"--{name}.{field} has no effect {reason}; leave it out"
                problems.append(problem.replace("_", "-"))
    if problems:
        raise UserError("; ".join(problems))


def refuse_changed(config: Config, recipe: Config, fields: Sequence[str], subject: str) -> None:
    """Raise UserError for fields that flags changed although they have no effect on a subject."""
    values = flat(to_dict(config))
    defaults = flat(to_dict(recipe))
    changed = [field for field in fields if values[field] != defaults[field]]
    if changed:
        flags = ", ".join(f"--{field.replace('_', '-')}" for field in changed)
        raise UserError(f"{flags}: no effect on {subject}; leave it out")
