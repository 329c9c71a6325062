"""Captions of drawings as people type them.

Sources are names, aliases, categories and colours.
"""

import colorsys
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final

from PIL import Image

MOST_WORDS: Final = 6
LEAST_SHARE: Final = 0.03  # of a set's names that end with a style mark
BRANDS: Final = ("brand", "logo", "logos", "bxl", "flag")


def words_of(text: str) -> frozenset[str]:
    """Return the words of a text."""
    return frozenset(text.split())


# style marks if many names of a set end with them; some are things elsewhere: ceiling light
STYLES: Final = words_of(
    "alerted badged bold broken color colored duo expressive fill flat light line linear o regular"
    " round rounded sharp solid stroke thin tone two"
)
ALWAYS: Final = words_of(
    "outline outlined filled duotone twotone alt alternate variant remix cust rtl ltr px f"
)
THINGS: Final = words_of(
    "bell bookmark clock dollar flag gear heart key lock moon music question shield star sun wifi"
)
SIGNS: Final[Mapping[str, tuple[str, ...]]] = {  # a name's last word → phrases for the rest
    **dict.fromkeys(("plus", "add"), ("add {}", "new {}")),
    **dict.fromkeys(("minus", "remove", "subtract"), ("remove {}",)),
    **dict.fromkeys(("off", "slash", "disabled", "disable"), ("no {}", "{} off", "{} crossed out")),
    **dict.fromkeys(("check", "checkmark", "tick", "done"), ("{} with a check mark", "{} done")),
    **dict.fromkeys(("x", "cancel", "close"), ("cancel {}", "{} with a cross")),
    **dict.fromkeys(("edit", "pen", "pencil"), ("edit {}",)),
    **{word: (f"{{}} with a {word}", f"{{}} and {word}") for word in THINGS},
}
NO_NOUNS: Final = (SIGNS.keys() - THINGS) | words_of("down in left off on out right up")
TOPICS: Final = words_of(
    "animal animals building buildings business clothes clothing drink education family food fruit"
    " furniture games hands health holidays home kitchen medical money music nature people plants"
    " science shopping sport sports tools toys traffic transport travel vehicles weather"
)
INKS: Final = {  # colours of black drawings that are coloured
    "red": "#e03131",
    "blue": "#1c5fd8",
    "green": "#2b9a3e",
    "yellow": "#f5c400",
    "orange": "#f57c00",
    "purple": "#8e3bd0",
    "pink": "#f06aa7",
    "brown": "#8a5a2b",
    "light blue": "#5bb8f5",
    "gray": "#868e96",
}
HUES: Final = (  # upper end in degrees, name
    (15, "red"),
    (43, "orange"),
    (68, "yellow"),
    (165, "green"),
    (195, "light blue"),
    (258, "blue"),
    (292, "purple"),
    (342, "pink"),
    (360, "red"),
)
LEAST_COLOR: Final = 0.55  # of a drawing's pixels that are not white


class Names:
    """Words of a set's icon names without its style marks."""

    def __init__(self, icons: Mapping[str, Any]):
        names = [name.split("-") for name in icons["icons"]]
        uses_at_ends = Counter(name[-1] for name in names)
        uses_at_ends.update(name[0] for name in names)
        self.styles = set(ALWAYS)
        for key in ("suffixes", "prefixes"):
            for style in icons.get(key) or ():
                self.styles |= STYLES.intersection(style.split("-"))
        for word in STYLES:
            if uses_at_ends[word] >= LEAST_SHARE * len(names):
                self.styles.add(word)

    def words(self, name: str) -> list[str]:
        """Return the words of a name without its numbers and style marks.

        Style marks are removed only at the ends. A name that consists of them keeps them.
        """
        name = re.sub(r"(?<=[a-z])\d+$", "", name)
        words = [word for word in name.split("-") if word and not re.fullmatch(r"\d+\w?", word)]
        start = 0
        end = len(words)
        while end > 0 and words[end - 1] in self.styles:
            end -= 1
        while start < end and words[start] in self.styles:
            start += 1
        if start == end:
            return words
        return words[start:end]


def color_of(image: Image.Image) -> str:
    """Return the name of a drawing's main colour, nothing if it has none."""
    counts: Any = image.convert("RGB").quantize(16).convert("RGB").getcolors()
    num_pixels: Counter[str] = Counter()
    for count, (red, green, blue) in counts:
        name = _color_name(*colorsys.rgb_to_hsv(red / 255, green / 255, blue / 255))
        num_pixels[name] += count
    del num_pixels[""]
    if not num_pixels:
        return ""
    color, count = num_pixels.most_common(1)[0]
    if count < LEAST_COLOR * num_pixels.total():
        return ""
    return color


def _color_name(hue: float, saturation: float, value: float) -> str:
    """Return the name of a colour, nothing for white and near-white. All values are 0 to 1."""
    if value > 0.93 and saturation < 0.08:
        return ""  # white, or the background
    if value < 0.2:
        return "black"
    if saturation < 0.18:
        return "gray" if value < 0.85 else ""
    degrees = hue * 360
    color = next(name for end, name in HUES if degrees < end)
    if color in ("orange", "red") and value < 0.65 and degrees < 60:
        return "brown" if degrees > 8 else "red"
    if color == "red" and saturation < 0.55 and value > 0.8:
        return "pink"
    if color == "blue" and saturation < 0.5 and value > 0.8:
        return "light blue"
    return color


def plural(words: str) -> str:
    """Return the regular plural of a noun."""
    if words.endswith(("s", "x", "ch", "sh")):
        return words + "es"
    if re.search("[^aeiou]y$", words):
        return words[:-1] + "ies"
    return words + "s"


def article(words: str) -> str:
    """Return words after a or an."""
    starts_with_vowel = re.match("[aeio]|u(?!n[ist]|s[be]|ti|r[il])", words)
    return f"an {words}" if starts_with_vowel else f"a {words}"


def phrases(words: list[str], *, is_thing: bool) -> list[str]:
    """Return the forms in which people type a name.

    Forms are the name, with `icon`, with an article, in the plural, in another order, and with
    signs in words.

    is_thing: whether it names a thing without its last word.
    """
    name = " ".join(words)
    forms = [name, f"{name} icon"]
    if words[-1] not in NO_NOUNS:
        forms.append(article(name))
        if len(words) <= 2 and len(words[-1]) > 2 and not name.endswith("s"):
            forms.append(plural(name))
    if len(words) == 2:
        forms.append(" ".join(reversed(words)))
    if is_thing:
        thing = " ".join(words[:-1])
        forms += [form.format(thing) for form in SIGNS.get(words[-1], ())]
    return forms


def captions_of(
    words: list[str], is_thing: bool, synonyms: Iterable[str], topic: str, color: str
) -> list[str]:
    """Return all captions of a drawing.

    The plain name comes twice because training then shows it more often.

    topic, color: nothing if there is none.
    """
    name = " ".join(words)
    captions = [name, *phrases(words, is_thing=is_thing), *synonyms]
    if color and INKS.keys().isdisjoint(words):
        captions += [f"{color} {name}", article(f"{color} {name}")]
    if topic and topic not in name:
        captions.append(f"{name} {topic}")
    return captions
