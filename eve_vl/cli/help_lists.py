"""Words that ask for help, and lists of choices such as verbs and recipes."""

from collections.abc import Iterable, Mapping

from eve_vl.utils.console import print_line

HELP = ("-h", "--help", "help")


def asks_for_help(words: Iterable[str]) -> bool:
    """Return whether one of the words asks for help."""
    return any(word in HELP for word in words)


def print_list(usage: str, texts: Mapping[str, str], note: str) -> None:
    """Print the usage, the possible choices with their texts, and a note."""
    width = max(map(len, texts))
    choices = [f"  {name:{width}} {text}" for name, text in texts.items()]
    print_line(*usage.split("\n"), "", *choices, "", *note.split("\n"))
