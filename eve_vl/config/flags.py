"""Configs as flags of the command line."""

from collections.abc import Mapping
from typing import Any

from eve_vl.config.config import Config
from eve_vl.config.json_form import to_dict


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of `to_dict` by dotted names, e.g. `train.steps`."""
    named: dict[str, Any] = {}
    for key, value in values.items():
        named |= (
            flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return named


def changed_flags(config: Config, default: Config) -> list[str]:
    """Return the flags that turn a default config into another."""
    words, defaults = list[str](), flat(to_dict(default))
    for name, value in flat(to_dict(config)).items():
        if value != defaults.get(name):
            section, dot, field_name = name.rpartition(".")
            words.append(
                "--"
                + (f"{section}{dot}no-{field_name}" if value is False else name).replace("_", "-")
            )
            parts = value if isinstance(value, list) else [] if isinstance(value, bool) else [value]
            words += (
                str(word) for part in parts for word in (part if isinstance(part, list) else [part])
            )
    return words
