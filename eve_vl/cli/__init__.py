"""The command line `eve VERB …`: a user's mistake is one line and exit status 2."""

import errno
import sys
import typing
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from eve_vl import __version__
from eve_vl.cli.common import HELP, fail, parse, print_line, print_list, run_completion
from eve_vl.cli.convert import run_convert
from eve_vl.cli.data import run_data_answers, run_data_check, run_data_write, run_tokenizer_train
from eve_vl.cli.predict import call_verbs, run_encode
from eve_vl.cli.runs import run_evaluate, run_export, run_inspect, run_report
from eve_vl.cli.search import run_index, run_search, run_try
from eve_vl.cli.serve import run_app, run_serve
from eve_vl.cli.train import run_bench, run_demo, run_finetune, run_pretrain
from eve_vl.config import TaskConfig, all_kinds
from eve_vl.config.plugins import load_file, load_named
from eve_vl.utils.console import is_main
from eve_vl.utils.errors import SharedError, UserError, nearest
from eve_vl.utils.runtime import keep_memory, yield_cores

DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EPIPE}  # EPIPE: the reader of a pipe has gone


def _named(*runs: Callable[[Any], None]) -> dict[str, Callable[[Any], None]]:
    """Return verb → function: `data check` is `run_data_check`."""
    return {run.__name__.removeprefix("run_").replace("_", " "): run for run in runs}


VERBS = {
    **_named(run_try, run_demo, run_pretrain, run_finetune, run_evaluate),
    **call_verbs(),
    **_named(
        *(run_encode, run_index, run_search, run_serve, run_app),
        *(run_data_check, run_data_answers, run_data_write, run_tokenizer_train, run_convert),
        *(run_inspect, run_bench, run_report, run_export, run_completion),
    ),
}
"""Verb → function of its parsed flags or, if its flags depend on the first word, of all words."""
NOTE = """\
eve help VERB and eve VERB --help describe a verb. --code FILE.py first loads tasks and readers of your own, with any verb."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; `argv` as in sys.argv[1:]."""
    argv = list(sys.argv[1:] if argv is None else argv)
    keep_memory()
    yield_cores()
    try:
        _dispatch(_with_code_loaded(argv))
    except UserError as error:
        if isinstance(error, SharedError) and not is_main():
            sys.exit(getattr(error, "code", 2))
        fail(str(error), getattr(error, "code", 2))
    except OSError as error:
        # Files that the user named and full or failing disks are the user's to fix. An error about no file (a closed
        # descriptor, a call inside torch) or about a file of this package is a bug and keeps its traceback.
        is_named = isinstance(error.filename, str) and not Path(error.filename).is_relative_to(Path(__file__).parents[1])
        if not is_named and error.errno not in DISK:
            raise
        fail(f"{error.filename}: {error.strerror}" if is_named else str(error.strerror), 2)
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
    verbs = VERBS | call_verbs()  # includes tasks loaded with --code
    group = [name for name in verbs if " " in name and argv[:1] == name.split()[:1]]
    if not argv or argv[0] in HELP or (group and {*HELP} & {*argv[1:2]}):
        print_list("usage: eve VERB …", {name: verbs[name].__doc__ or "" for name in group or verbs}, NOTE)
        return
    if argv[0] == "--version":
        print_line(__version__)
        return
    if group and len(argv) == 1:
        raise UserError(f"usage: eve {' | eve '.join(group)} …")
    num_words = 2 if group else 1
    name, rest = " ".join(argv[:num_words]), argv[num_words:]
    if name not in verbs:  # perhaps of a task in EVE_CODE or an installed package
        load_named()
        all_kinds(TaskConfig, "tasks")
        verbs |= call_verbs()
    if name not in verbs:
        raise UserError(f"no verb {nearest(name, verbs)} (a verb of your own task needs --code FILE.py)")
    run, words = verbs[name], [*rest[1:], "--help"] if rest[:1] == ["help"] else rest
    flags = typing.get_type_hints(run).get("args")
    run(parse(flags, words, f"eve {name}", run.__doc__) if flags else words)
