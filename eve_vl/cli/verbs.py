"""The table of verbs, and how a verb is found."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from eve_vl.config import TaskConfig
from eve_vl.config.kinds import all_kinds
from eve_vl.config.plugins import load_named
from eve_vl.utils.errors import UserError, nearest

VERBS = {
    "try": "try_page",
    "index": "index",
    "features": "features",
    "search": "search",
    "serve": "serve",
    "learn": "learn",
    "demo": "demo",
    "pretrain": "train",
    "finetune": "train",
    "average": "average",
    "runs": "runs",
    "bench": "bench",
    "plan": "plan",
    "evaluate": "evaluate",
    "inspect": "inspect",
    "report": "report",
    "export": "export",
    "convert": "convert",
    "data check": "data_check",
    "data answers": "data_answers",
    "data write": "data_write",
    "tokenizer train": "tokenizer_train",
    "completion": "completion",
}
"""Verb → file of this folder with its function, `run_data_check` for `data check`.

Each call of a run is a verb too.
"""


def find_verb(verb: str) -> Callable[[Any], None]:
    """Return a verb's function. Raises UserError for an unknown verb.

    It takes the parsed flags or, if these depend on the first word, all words. Only the verb's own
    file is imported: `eve pretrain` does without search and server.
    """
    if verb in VERBS:
        module = import_module(f"eve_vl.cli.{VERBS[verb]}")
        return getattr(module, f"run_{verb.replace(' ', '_')}")
    if verb not in find_call_verbs():  # perhaps of a task in EVE_CODE or an installed package
        load_named()
        all_kinds(TaskConfig, "tasks")
    calls = find_call_verbs()
    if verb not in calls:
        raise UserError(
            f"no verb {nearest(verb, [*VERBS, *calls])} "
            "(a verb of your own task needs --code FILE.py)"
        )
    return calls[verb]


def find_call_verbs() -> dict[str, Callable[[Any], None]]:
    """Return the verbs that are calls of runs."""
    from eve_vl.cli.calls import call_verbs

    return call_verbs()
