"""The command line `eve VERB …`: a user's mistake is one line and exit status 2."""

import errno
import sys
import typing
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from eve_vl import __version__
from eve_vl.cli.common import HELP, fail, parse, print_line, print_list
from eve_vl.config import TaskConfig
from eve_vl.config.kinds import all_kinds
from eve_vl.config.plugins import load_file, load_named
from eve_vl.utils.console import is_main
from eve_vl.utils.errors import SharedError, UserError, nearest
from eve_vl.utils.memory import keep_memory
from eve_vl.utils.threads import yield_cores

DISK = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EIO,
    errno.EPIPE,
}  # EPIPE: the reader of a pipe has gone
VERBS = {
    "try": "search",
    "index": "search",
    "features": "features",
    "search": "search",
    "serve": "search",
    "learn": "learn",
    "demo": "train",
    "pretrain": "train",
    "finetune": "train",
    "average": "train",
    "runs": "compare",
    "bench": "runs",
    "plan": "runs",
    "evaluate": "runs",
    "inspect": "runs",
    "report": "runs",
    "export": "runs",
    "convert": "runs",
    "data check": "data",
    "data answers": "data",
    "data write": "data",
    "tokenizer train": "data",
    "completion": "common",
}
"""Verb → file of this folder with its function, `run_data_check` for `data check`. Each call of a run is a verb too."""
NOTE = """\
eve help VERB and eve VERB --help describe a verb. --code FILE.py first loads tasks and readers of your own, with any verb."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; `argv` as in sys.argv[1:]."""
    argv = list(sys.argv[1:] if argv is None else argv)
    keep_memory()
    yield_cores()
    # its encoding may be ASCII; stderr does this from the start
    getattr(sys.stdout, "reconfigure", dict)(errors="backslashreplace")
    try:
        _dispatch(_with_code_loaded(argv))
    except UserError as error:
        if isinstance(error, SharedError) and not is_main():
            sys.exit(getattr(error, "code", 2))
        fail(str(error), getattr(error, "code", 2))
    except OSError as error:
        # Files that the user named and full or failing disks are the user's to fix. An error about no file (a closed
        # descriptor, a call inside torch) or about a file of this package is a bug and keeps its traceback.
        name = (
            error.filename2 or error.filename
        )  # the former: the target of a file that takes its place
        is_named = isinstance(name, str) and not Path(name).is_relative_to(
            Path(__file__).parents[1]
        )
        if not is_named and error.errno not in DISK:
            raise
        fail(f"{name}: {error.strerror}" if is_named else str(error.strerror), 2)
    except KeyboardInterrupt:
        fail("interrupted", 130)


def _with_code_loaded(argv: list[str]) -> list[str]:
    """Import the files given with --code and return the other words. Raises UserError."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--code", nargs="?", action="append", const="", default=[])
    named, others = parser.parse_known_args(argv)
    for path in named.code:
        load_file(path)
    return others


def _dispatch(argv: list[str]) -> None:
    if argv[:1] == ["help"]:
        argv = [*argv[1:], "--help"]
    group = [verb for verb in VERBS if " " in verb and argv[:1] == verb.split()[:1]]
    if not argv or argv[0] in HELP or (group and {*HELP} & {*argv[1:2]}):
        verbs = {verb: _find(verb) for verb in group or VERBS} | ({} if group else _calls())
        print_list(
            "usage: eve VERB …", {verb: run.__doc__ or "" for verb, run in verbs.items()}, NOTE
        )
        return
    if argv[0] == "--version":
        print_line(__version__)
        return
    if group and len(argv) == 1:
        raise UserError(f"usage: eve {' | eve '.join(group)} …")
    num_words = 2 if group else 1
    verb, rest = " ".join(argv[:num_words]), argv[num_words:]
    run, words = _find(verb), [*rest[1:], "--help"] if rest[:1] == ["help"] else rest
    flags = typing.get_type_hints(run).get("args")
    run(parse(flags, words, f"eve {verb}", run.__doc__) if flags else words)


def _find(verb: str) -> Callable[[Any], None]:
    """Return a verb's function. Raises UserError for an unknown verb.

    It takes the parsed flags or, if these depend on the first word, all words.
    Imports only the verb's own file: `eve pretrain` does without search and server.
    """
    if verb in VERBS:
        return getattr(import_module(f"{__name__}.{VERBS[verb]}"), f"run_{verb.replace(' ', '_')}")
    if verb not in _calls():  # perhaps of a task in EVE_CODE or an installed package
        load_named()
        all_kinds(TaskConfig, "tasks")
    if verb not in _calls():
        raise UserError(
            f"no verb {nearest(verb, [*VERBS, *_calls()])} (a verb of your own task needs --code FILE.py)"
        )
    return _calls()[verb]


def _calls() -> dict[str, Callable[[Any], None]]:
    from eve_vl.cli.predict import call_verbs

    return call_verbs()
