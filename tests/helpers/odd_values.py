"""Numbers, texts and JSON values that programs often do not expect, for the fault campaigns.

The order of each list decides what a seed samples.
"""

from typing import Any

# in JSON: stand for what json.dumps cannot write
DEEP = "@@DEEP@@"
LONG = "@@LONG@@"
INFINITE = "@@INFINITE@@"
RAW = {
    DEEP: "[" * 100_000 + "]" * 100_000,
    LONG: "9" * 5000,
    INFINITE: "1e400",
}
"""What is written in their place."""

_WHOLE = [-1, 0, 1, -(2**31), 2**31, 2**32 - 1, 2**53 + 1, 2**63 - 1, 2**63, 2**64]
_FLOATS = [
    1e308,
    0.5,
    -0.0,
    99_999_999,
    float("nan"),
    float("inf"),
]
NUMBERS: list[Any] = [
    *_WHOLE,
    *_FLOATS,
    LONG,
    INFINITE,
    True,
]

_CONTROL = ["", " ", "\0", "\n", "a\tb\r\nc", "\x1b[31mred\x1b[2J", "\x07\x08", "\x7f\x9b31m"]
_UNICODE = ["\ud800", "\udcff.png", "\u200b\u200b", "\u202eabc\u202c", "\u2028x\u2029"]
_UNICODE += ["\ufeff", "\ufffe", "İ", "𝕏\U000e0001"]
_SIZES = [
    "a" * 300,
    "a" * 300 + ".png",
    "é" * 200,
    "word " * 1001,
    "x" * 200_000,
]
_PATHS = ["../../etc/passwd", "/etc/passwd", "/dev/zero", "/dev/stdin", "~nosuchuser/x.png", "~"]
_SYNTAX = ["http://x/y.png", "[MASK] [CLS] [PAD]", "{0000..0003}.png", "[bold]x[/nope]", "%s%n"]
_SYNTAX += ["-1", "NaN", "null", "1e400", ".", "{0..99999999999999999999}", "a/b/../../.."]
TEXTS = [
    *_CONTROL,
    *_UNICODE,
    *_SIZES,
    *_PATHS,
    *_SYNTAX,
    "x" * 5000 + "/y.png",
    "0" * 5000,
]

_EMPTY: list[Any] = [
    "",
    [],
    {},
    [[]],
    [None],
    {"": None},
    {"a": {"b": []}},
]
SWAPS: list[Any] = [None, True, False, 3, 2.5, "text", *_EMPTY, DEEP]
