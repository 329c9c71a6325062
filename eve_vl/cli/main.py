"""The command line from its words to the function of a verb."""

import sys
import typing
from argparse import ArgumentParser
from collections.abc import Sequence

from eve_vl import __version__
from eve_vl.cli.error_lines import exit_with_one_line
from eve_vl.cli.help_lists import HELP, print_list
from eve_vl.cli.parsing import parse
from eve_vl.cli.verbs import VERBS, find_call_verbs, find_verb
from eve_vl.config.plugins import load_file
from eve_vl.utils.console import print_line
from eve_vl.utils.errors import UserError
from eve_vl.utils.memory import keep_memory
from eve_vl.utils.threads import yield_cores

NOTE = (
    "eve help VERB and eve VERB --help describe a verb. "
    "--code FILE.py first loads tasks and readers of your own, with any verb."
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; `argv` as in sys.argv[1:]. A user's mistake is one line, status 2."""
    words = sys.argv[1:] if argv is None else argv
    keep_memory()
    yield_cores()
    # its encoding may be ASCII; stderr does this from the start
    getattr(sys.stdout, "reconfigure", dict)(errors="backslashreplace")
    with exit_with_one_line():
        dispatch(_with_code_loaded(words))


def _with_code_loaded(argv: Sequence[str]) -> list[str]:
    """Import the files named with --code and return the remaining words. Raises UserError."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--code", nargs="?", action="append", const="", default=[])
    flags, words = parser.parse_known_args(argv)
    for path in flags.code:
        load_file(path)
    return words


def dispatch(argv: Sequence[str]) -> None:
    """Run the verb that words name, or print help. Raises UserError."""
    words = list(argv)
    if words[:1] == ["help"]:
        words = [*words[1:], "--help"]
    if not words or words[0] in HELP:
        _print_verbs([*VERBS, *find_call_verbs()])
        return
    if words[0] == "--version":
        print_line(__version__)
        return

    group = [verb for verb in VERBS if verb.startswith(f"{words[0]} ")]
    if group and len(words) == 1:
        raise UserError(f"usage: eve {' | eve '.join(group)} …")
    if group and words[1] in HELP:
        _print_verbs(group)
        return
    num_words = 2 if group else 1
    _run_verb(" ".join(words[:num_words]), words[num_words:])


def _run_verb(verb: str, words: list[str]) -> None:
    """Run a verb with its flags parsed or, if they depend on the first word, with all words."""
    run = find_verb(verb)
    if words[:1] == ["help"]:
        words = [*words[1:], "--help"]
    flags = typing.get_type_hints(run).get("args")
    if flags is None:
        run(words)
    else:
        run(parse(flags, words, f"eve {verb}", run.__doc__))


def _print_verbs(verbs: Sequence[str]) -> None:
    texts = {verb: find_verb(verb).__doc__ or "" for verb in verbs}
    print_list("usage: eve VERB …", texts, NOTE)
