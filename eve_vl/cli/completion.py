"""The verb completion: a script that completes verbs, recipes and flags in a shell."""

from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from eve_vl.utils.console import print_line
from eve_vl.utils.frozen import Frozen

SCRIPT = Path(__file__).with_name("completion.bash")
ZSH = "autoload -U +X compinit bashcompinit && compinit && bashcompinit"


class CompletionArgs(Frozen):
    """Flags of `eve completion`."""

    shell: Positional[Literal["bash", "zsh"]]
    """Shell of the script."""


def run_completion(args: CompletionArgs) -> None:
    """Print a completion script for your shell to source: eve completion bash|zsh."""
    if args.shell == "zsh":
        print_line(ZSH)
    print_line(*SCRIPT.read_text().rstrip().split("\n"))
