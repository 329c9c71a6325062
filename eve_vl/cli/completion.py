"""The verb completion: a script for the shell, which completes verbs, what comes first after them, and flags."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tyro.conf import Positional

from eve_vl.cli.common import ALL_FLAGS, FlagsAskedError
from eve_vl.config import TaskConfig, kinds_of
from eve_vl.recipes import RECIPES, installed_recipes

Verbs = Mapping[str, Callable[[Sequence[str]], None]]
HEADS = {"bash": "", "zsh": "autoload -U +X compinit bashcompinit && compinit && bashcompinit\n"}
SCRIPT = """_eve() {
    local words
    case "${COMP_WORDS[*]:1:COMP_CWORD-1} " in
%s
    esac
    COMPREPLY=($(compgen -W "$words" -- "${COMP_WORDS[COMP_CWORD]}"))
}
complete -o default -F _eve eve"""


@dataclass(frozen=True, kw_only=True)
class CompletionArgs:
    """Flags of `eve completion`."""

    shell: Positional[Literal["bash", "zsh"]]
    """What to write the script for."""


def completion_script(shell: str, verbs: Verbs) -> str:
    """Return the script for bash or zsh."""
    first = {verb: [*recipes, *installed_recipes(verb)] for verb, recipes in RECIPES.items()}
    first |= {"evaluate": [name for name, kind in kinds_of(TaskConfig).items() if kind.has_numbers]}
    first |= {verb.split()[0]: verb.split()[1:] for verb in verbs if " " in verb} | {"completion": [*HEADS]}
    known = {f'"{words} "': each for words, each in first.items()}
    known |= {f'"{verb} "*': _flags(verbs[verb], first.get(verb, ())) for verb in verbs if verb != "completion"}
    known |= {'" "': dict.fromkeys(["help", *(verb.split()[0] for verb in verbs)])}
    return HEADS[shell] + SCRIPT % "\n".join(
        f"        {line}) words={shlex.quote(' '.join(each))};;" for line, each in known.items()
    )


def _flags(verb: Callable[[Sequence[str]], None], first: Sequence[str]) -> list[str]:
    """Return the flags of a verb, after any of the words that may come first."""
    flags = {"--code", "--help"}
    for word in first or [""]:
        try:
            verb([word, "--help", ALL_FLAGS])
        except FlagsAskedError as asked:
            flags |= {*asked.flags}
    return sorted(flags)
