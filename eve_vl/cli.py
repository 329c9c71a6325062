"""The command line: `eve VERB …`. Mistakes of the user end in one line on stderr and exit status 2, never in a traceback."""

import ctypes
import dataclasses
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro
from rich.console import Console
from tyro.conf import Positional

from eve_vl import __version__
from eve_vl.config import Config, DataConfig, TokenizerConfig, nearest
from eve_vl.errors import UserError
from eve_vl.recipes import RECIPES, get_recipe

Args = TypeVar("Args")
HELP = ("-h", "--help", "help")


@dataclass(frozen=True, kw_only=True)
class PretrainArgs:
    """Flags of `eve pretrain`."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    resume: bool = False
    """Insist on going on with the run in --out. The same command without it goes on too, or starts if there is nothing yet."""


@dataclass(frozen=True, kw_only=True)
class SourceArgs:
    """How to read sources that are named on the command line."""

    format: str = "auto"
    """On-disk form; auto looks at the path."""
    image_root: Path | None = None
    """Folder that picture paths are relative to and must stay inside."""
    image_column: str | None = None
    """Column of the picture."""
    text_column: str | None = None
    """Column of the caption or captions, question or statement."""
    label_column: str | None = None
    """Column of the answer or answers to a question, or of whether a statement is true."""

    def open(self, specs: Sequence[str], image_size: int) -> list[Any]:
        """Open sources. Raises UserError."""
        from eve_vl.data.loader import open_sources

        return open_sources(specs, self.data_config(), image_size)

    def data_config(self) -> DataConfig:
        """Return these options as a data section."""
        return DataConfig(
            format=self.format,
            image_root=self.image_root,
            image_column=self.image_column,
            text_column=self.text_column,
            label_column=self.label_column,
        )


@dataclass(frozen=True, kw_only=True)
class EvaluateArgs(SourceArgs):
    """Flags of `eve evaluate masked_signal`."""

    run: Positional[Path]
    """Run folder, or one of its checkpoints."""
    data: tuple[str, ...] = ()
    """Sources to evaluate on, as for --data.train; default: the run's own validation sources."""
    samples: int = 1000
    """Evaluate on this many pairs at most, spread evenly."""
    json: Path | None = None
    """Also write the numbers to this file."""


@dataclass(frozen=True, kw_only=True)
class CheckArgs(SourceArgs):
    """Flags of `eve data check`."""

    path: Positional[str]
    """What --data.train would be given."""
    json: Path | None = None
    """Also write the report to this file."""


@dataclass(frozen=True, kw_only=True)
class TokenizerArgs(SourceArgs):
    """Flags of `eve tokenizer train`."""

    data: Positional[tuple[str, ...]]
    """Sources whose captions to learn from, as for --data.train."""
    out: Path = Path("tokenizer.json")
    """File to write."""
    vocab_size: int = 64_000
    """Upper bound of the vocabulary."""


@dataclass(frozen=True, kw_only=True)
class InspectArgs:
    """Flags of `eve inspect`."""

    what: Positional[str]
    """A recipe's name or a run folder."""
    json: Path | None = None
    """Also write the numbers to this file."""


@dataclass(frozen=True, kw_only=True)
class ReportArgs:
    """Flags of `eve report`."""

    run: Positional[Path]
    """Run folder."""
    out: Path | None = None
    """File to write; default: report.html in the run folder."""


def run_pretrain(argv: Sequence[str]) -> None:
    """Pre-train by masked signal modelling: eve pretrain RECIPE [flags]."""
    if not argv or argv[0].startswith("-"):
        lines = [f"  {name:8} {(recipe.__doc__ or '').splitlines()[0]}" for name, recipe in RECIPES.items()]
        text = "usage: eve pretrain RECIPE [flags]   (eve pretrain RECIPE --help lists the flags)\n\nrecipes:\n"
        if argv and argv[0] in HELP:
            _say(text + "\n".join(lines))
            return
        raise UserError(f"name a recipe: {', '.join(RECIPES)}")
    recipe = get_recipe(argv[0])
    args = _parse(
        PretrainArgs, argv[1:], f"eve pretrain {argv[0]}", RECIPES[argv[0]].__doc__, default=PretrainArgs(config=recipe)
    )
    from eve_vl.run import pretrain

    report = pretrain(args.config, must_resume=args.resume)
    if report is not None:
        _say(f"report: {report}")


def run_evaluate(argv: Sequence[str]) -> None:
    """Compute a task's numbers for a run on any data: eve evaluate masked_signal RUN [flags]."""
    tasks = ["masked_signal"]
    usage = f"usage: eve evaluate TASK RUN [--data PATH …] [--json FILE]; tasks: {', '.join(tasks)}"
    if argv and argv[0] in HELP:
        _say(f"{usage}\n(eve evaluate {tasks[0]} --help lists the flags)")
        return
    if not argv or argv[0].startswith("-"):
        raise UserError(usage)
    if argv[0] not in tasks:
        raise UserError(f"no task {nearest(argv[0], tasks)}")
    args = _parse(EvaluateArgs, argv[1:], f"eve evaluate {argv[0]}", run_evaluate.__doc__)
    from eve_vl.run import evaluate_run, load_run
    from eve_vl.train.trainer import pick_device

    run = load_run(args.run, pick_device("auto"))
    sources = args.open(args.data, run.config.model.image_size) if args.data else None
    if sources is None and args.data_config() != DataConfig():
        raise UserError("--format, --image-root and the columns say how to read --data; name sources with it")
    numbers = evaluate_run(run, args.samples, sources)
    _say("\n".join(f"{name:24} {value:.4f}" for name, value in numbers.items()))
    _write_json(args.json, numbers)


def run_data_check(argv: Sequence[str]) -> None:
    """Read every row and picture once and list what is broken: eve data check PATH [flags]."""
    args = _parse(CheckArgs, argv, "eve data check", run_data_check.__doc__)
    from eve_vl.data.check import check_source

    console = Console(highlight=False, soft_wrap=True)
    (source,) = args.open((args.path,), image_size=224)
    report = check_source(source, console=console)
    report.render(console)
    _write_json(args.json, report.to_dict())
    if report.broken:
        sys.exit(1)


def run_tokenizer_train(argv: Sequence[str]) -> None:
    """Train a byte-level BPE on captions: eve tokenizer train PATH … [flags]."""
    args = _parse(TokenizerArgs, argv, "eve tokenizer train", run_tokenizer_train.__doc__)
    from eve_vl.run import train_tokenizer

    problems = TokenizerConfig(vocab_size=args.vocab_size).problems()
    if problems:
        raise UserError("; ".join(problems))
    tokenizer = train_tokenizer(args.data, args.data_config(), args.vocab_size)
    _write_text(args.out, tokenizer.to_json())
    _say(f"{args.out}: {tokenizer.vocab_size} tokens")


def run_inspect(argv: Sequence[str]) -> None:
    """Show shapes, parameters and FLOPs of a recipe or a run: eve inspect RECIPE|RUN."""
    args = _parse(InspectArgs, argv, "eve inspect", run_inspect.__doc__)
    from eve_vl.inspect import inspect_config, inspect_run

    is_run = args.what not in RECIPES and Path(args.what).exists()
    report = inspect_run(Path(args.what)) if is_run else inspect_config(get_recipe(args.what))
    report.render(Console())
    _write_json(args.json, report.to_dict())


def run_report(argv: Sequence[str]) -> None:
    """Write a self-contained HTML page about a run: eve report RUN [flags]."""
    args = _parse(ReportArgs, argv, "eve report", run_report.__doc__)
    from eve_vl.report import write_report

    _say(f"report: {write_report(args.run, args.out)}")


VERBS: dict[str, Callable[[Sequence[str]], None]] = {
    "pretrain": run_pretrain,
    "evaluate": run_evaluate,
    "data check": run_data_check,
    "tokenizer train": run_tokenizer_train,
    "inspect": run_inspect,
    "report": run_report,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; `argv` as in sys.argv[1:]."""
    argv = list(sys.argv[1:] if argv is None else argv)
    keep_memory()
    yield_cores()
    try:
        _dispatch(argv)
    except UserError as error:
        message = str(error).rpartition("UserError: ")[2].strip()  # a loader worker wraps it in its own traceback
        _fail(message, getattr(error, "code", 2))
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        _fail(f"{name}{error.strerror or error}", 2)
    except KeyboardInterrupt:
        _fail("interrupted", 130)


def _dispatch(argv: list[str]) -> None:
    groups = {name.split()[0] for name in VERBS if " " in name}
    if not argv or argv[0] in HELP or (argv[0] in groups and (len(argv) == 1 or argv[1] in HELP)):
        lines = [f"  {name:16} {(verb.__doc__ or '').strip()}" for name, verb in VERBS.items()]
        _say("usage: eve VERB …\n\n" + "\n".join(lines))
        return
    if argv[0] == "--version":
        _say(__version__)
        return
    two_words = " ".join(argv[:2])
    if two_words in VERBS:
        VERBS[two_words](argv[2:])
    elif argv[0] in VERBS:
        VERBS[argv[0]](argv[1:])
    else:
        raise UserError(f"no verb {nearest(two_words if argv[0] in groups else argv[0], VERBS)}")


def _parse(cls: type[Args], argv: Sequence[str], prog: str, description: str | None, default: Args | None = None) -> Args:
    """Parse flags into a dataclass. Raises UserError for an unknown flag, with the nearest known one."""
    kwargs: dict[str, Any] = {} if default is None else {"default": default}
    if issubclass(cls, SourceArgs):  # the same flags as in `eve pretrain`, with or without their section
        argv = [re.sub(r"^--data\.(?=format|image|caption)", "--", word) for word in argv]
    args, unknown = tyro.cli(cls, args=list(argv), prog=prog, description=description, return_unknown_args=True, **kwargs)
    if unknown:
        flag = next((word for word in unknown if word.startswith("-")), None)
        if flag is None:
            raise UserError(f"unexpected argument {unknown[0]!r}")
        name = re.sub(r"=.*", "", flag).replace("_", "-")
        raise UserError(f"no flag {nearest(name, flag_names(cls))}")
    return args


def flag_names(cls: type, prefix: str = "") -> list[str]:
    """Return every flag that a dataclass of arguments accepts, as typed."""
    import typing

    names = []
    hints = typing.get_type_hints(cls)
    with_extras = typing.get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        if field.name == "config":
            names += flag_names(hints["config"])
        elif dataclasses.is_dataclass(hints[field.name]):
            names += flag_names(hints[field.name], f"{prefix}{field.name}.")
        elif hints[field.name] == with_extras[field.name]:  # marked ones are positional or fixed
            names.append(f"--{prefix}{field.name}".replace("_", "-"))
            if hints[field.name] is bool:
                names.append(f"--{prefix}no-{field.name}".replace("_", "-"))
    return names


def keep_memory() -> None:
    """Tell glibc to keep freed memory: giving big tensors back to the system and getting them again costs more than the
    arithmetic on them (activations of a small model are 2–3 times slower without this)."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        for option, value in (
            (-3, 1 << 30),
            (-1, (1 << 31) - 1),
            (-2, 64 << 20),
        ):  # MMAP_THRESHOLD, TRIM_THRESHOLD, TOP_PAD
            libc.mallopt(option, value)


def yield_cores() -> None:
    """Let idle threads spin for microseconds, then sleep: on shared cores, two threads that spin as long as they like can be
    20 times slower than one, and threads that never spin gain nothing (LOG.md).

    Works only before torch is imported; a value that the user has set stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")


def _write_json(path: Path | None, values: dict[str, Any]) -> None:
    if path is not None:
        _write_text(path, json.dumps(values, indent=1) + "\n")


def _write_text(path: Path, text: str) -> None:
    from eve_vl.train.checkpoint import write_file

    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, text)


def _say(text: str) -> None:
    Console(highlight=False, soft_wrap=True).print(text, markup=False)


def _fail(message: str, code: int) -> None:
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"eve: {message}", markup=False)
    sys.exit(code)
