"""The verb completion: a script for the shell, which offers what the help of the words typed so far lists."""

from dataclasses import dataclass
from typing import Literal

from tyro.conf import Positional

from eve_vl.cli.common import print_line

HEADS = {"bash": "", "zsh": "autoload -U +X compinit bashcompinit && compinit && bashcompinit\n"}
SCRIPT = r"""_eve() {
    local verb= word=
    ((COMP_CWORD > 1)) && verb="${COMP_WORDS[1]}"
    ((COMP_CWORD > 2)) && word="${COMP_WORDS[2]##-*}"
    [[ "$_eve_asked" == "$verb $word" ]] || _eve_words="$(COLUMNS=80 eve $verb $word --help 2>/dev/null | sed -nE "
        s/^  ($verb )?([[:alnum:]_-]+) .*/\2/p
        s/^[^-a-z ]+ -h, (--help).*/\1 --code/p
        s/^[^-a-z ]+ (--[a-z.-]+(, --[a-z.-]+)*).*/\1/p
        s/^[^-a-z ]+ \{([a-z,]+)\} .*/\1/p
        s/^eve (help) VERB.*/\1/p" | tr , ' ')"
    _eve_asked="$verb $word"
    COMPREPLY=($(compgen -W "$_eve_words" -- "${COMP_WORDS[COMP_CWORD]}"))
}
complete -o default -F _eve eve"""


@dataclass(frozen=True, kw_only=True)
class CompletionArgs:
    """Flags of `eve completion`."""

    shell: Positional[Literal["bash", "zsh"]]
    """What to write the script for."""


def run_completion(args: CompletionArgs) -> None:
    """Print a script that completes verbs, recipes and flags: eve completion bash > FILE, to be sourced; or zsh."""
    print_line(HEADS[args.shell] + SCRIPT)
