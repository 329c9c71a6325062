"""The command line: `eve VERB …`. Mistakes of the user end in one line on stderr and exit status 2, never in a traceback."""

import sys
from collections.abc import Callable, Sequence

from eve_vl import __version__
from eve_vl.cli.common import HELP, fail, say
from eve_vl.cli.convert import run_convert
from eve_vl.cli.data import run_data_check, run_tokenizer_train
from eve_vl.cli.runs import run_evaluate, run_export, run_inspect, run_report
from eve_vl.cli.train import run_demo, run_finetune, run_pretrain
from eve_vl.cli.use import call_verbs, run_encode
from eve_vl.cpu import keep_memory, yield_cores
from eve_vl.errors import SharedError, UserError, nearest
from eve_vl.talk import is_main

VERBS: dict[str, Callable[[Sequence[str]], None]] = {
    "demo": run_demo,
    "pretrain": run_pretrain,
    "finetune": run_finetune,
    "evaluate": run_evaluate,
    **call_verbs(),
    "encode": run_encode,
    "data check": run_data_check,
    "tokenizer train": run_tokenizer_train,
    "convert": run_convert,
    "inspect": run_inspect,
    "report": run_report,
    "export": run_export,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; `argv` as in sys.argv[1:]."""
    argv = list(sys.argv[1:] if argv is None else argv)
    keep_memory()
    yield_cores()
    try:
        _dispatch(argv)
    except UserError as error:
        if isinstance(error, SharedError) and not is_main():
            sys.exit(getattr(error, "code", 2))
        message = str(error).rpartition("UserError: ")[2].strip()  # a loader worker wraps it in its own traceback
        fail(message, getattr(error, "code", 2))
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        fail(f"{name}{error.strerror or error}", 2)
    except KeyboardInterrupt:
        fail("interrupted", 130)


def _dispatch(argv: list[str]) -> None:
    groups = {name.split()[0] for name in VERBS if " " in name}
    if not argv or argv[0] in HELP or (argv[0] in groups and (len(argv) == 1 or argv[1] in HELP)):
        lines = [f"  {name:16} {(verb.__doc__ or '').strip()}" for name, verb in VERBS.items()]
        say("usage: eve VERB …\n\n" + "\n".join(lines))
        return
    if argv[0] == "--version":
        say(__version__)
        return
    num_words = 1 + (argv[0] in groups)
    verb = " ".join(argv[:num_words])
    if verb not in VERBS:
        raise UserError(f"no verb {nearest(verb, VERBS)}")
    VERBS[verb](argv[num_words:])
