"""Errors for people. Any other exception is a bug and keeps its traceback."""

import contextlib
import difflib
import re
from collections.abc import Collection, Iterable, Iterator
from fnmatch import fnmatchcase

MAX_MESSAGE = 4000  # characters of a message, which may quote a very long name or value
MAX_QUOTE = 600  # characters of a text that a message quotes
# torch's prefix of an error in a loader worker
WRAPPED = re.compile(r"(?s)Caught \w+ in .*\n[\w.]+: ")
UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)
"""Control characters, halves of surrogate pairs, line ends, and marks that reverse the text after
them."""


def printable(text: str) -> str:
    """Return a text on one line.

    Characters that a terminal, a log or a file cannot take become escapes.
    """
    return UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def shortened(text: str) -> str:
    """Return a text without its middle if it is very long."""
    return text if len(text) <= MAX_QUOTE else f"{text[:400]} … {text[-200:]}"


class UserError(ValueError):
    """A mistake in user input, in one line: where, problem, fix.

    The command line prints it and exits.
    """

    def __init__(self, message: object):
        text = printable(WRAPPED.sub("", str(message), count=1).rstrip("\n"))
        if len(text) > MAX_MESSAGE:
            text = f"{text[: MAX_MESSAGE // 2]} … {text[-MAX_MESSAGE // 2 :]}"
        super().__init__(text)


class SharedError(UserError):
    """A UserError that every process of a run raises; only the first prints it."""


class StoppedError(SharedError):
    """A signal stopped the run after a checkpoint."""

    def __init__(self, message: object, code: int):
        """code: exit status of the shell."""
        super().__init__(message)
        self.code = code


class DamagedError(UserError):
    """Damage of files that the program itself has written."""

    def __init__(self, message: object, *, is_locked: bool = False, is_gone: bool = False):
        """is_locked: another process is writing the files.

        is_gone: they were deleted or replaced.
        """
        super().__init__(message)
        self.is_locked = is_locked
        self.is_gone = is_gone


class StorageError(UserError):
    """Data that cannot be read or that changed; it stops a run, unlike one bad row."""


class BadSampleError(UserError):
    """An unusable row. Training skips and counts it, `eve data check` lists it."""

    row: str = ""
    """Unique name among all sources of a run, whose files may share a name."""

    def __init__(self, where: str, reason: str):
        self.where = printable(shortened(where))
        self.reason = printable(shortened(reason))
        super().__init__(f"{self.where}: {self.reason}")

    def __reduce__(self):
        """Allow pickling from a loader worker."""
        return BadSampleError, (self.where, self.reason), self.__dict__


MISSING_FIELDS = (TypeError, KeyError, ValueError, AttributeError)
"""Errors of code that reads missing or mistyped fields."""


@contextlib.contextmanager
def explained(
    problem: str, kind: type[BaseException] | tuple[type[BaseException], ...] = Exception
) -> Iterator[None]:
    """Turn errors of a library, or MISSING_FIELDS, into a UserError.

    problem: where and what. kind: BaseException catches panics of Rust code too. Rust prints them
    on stderr. Hiding that would redirect the stderr of all threads.
    """
    try:
        yield
    except (UserError, KeyboardInterrupt, SystemExit):
        raise
    except kind as error:
        reasons = str(error).splitlines()[:1]
        if type(error) is not Exception:
            reasons.insert(0, type(error).__name__)
        raise UserError(f"{problem} ({': '.join(reasons)})") from None


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return `name` quoted, with the nearest choice or else all.

    It ends an error message.
    """
    choices = sorted(choices)
    hint = did_you_mean(name, choices) or f"choose from {', '.join(choices)}"
    return f"{name!r}; {hint}"


def did_you_mean(name: str, choices: Iterable[str], cutoff: float = 0.6) -> str:
    """Return `did you mean 'x'?` for the closest choice; empty if none is close."""
    close = difflib.get_close_matches(name, list(choices), n=1, cutoff=cutoff)
    return f"did you mean {close[0]!r}?" if close else ""


def matching(pattern: str, names: Collection[str], flag: str) -> list[str]:
    """Return the parameter names that a flag's pattern matches.

    Raises UserError without a match.
    """
    matches = [name for name in names if fnmatchcase(name, pattern)]
    if matches:
        return matches
    suggestions = set(names)
    for name in names:
        for position, letter in enumerate(name):
            if letter == ".":
                suggestions.add(f"{name[:position]}.*")
    near = difflib.get_close_matches(pattern, sorted(suggestions), n=3, cutoff=0)
    raise UserError(
        f"{flag}: {pattern!r} matches no parameter; the nearest: {', '.join(map(repr, near))}"
    )
