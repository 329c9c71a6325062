"""Configs as flags of the command line."""

from collections.abc import Mapping
from typing import Any

from eve_vl.config.config import Config
from eve_vl.config.json_form import to_dict


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of `to_dict` by dotted names, e.g. `train.steps`."""
    named: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            named |= flat(value, f"{prefix}{key}.")
        else:
            named[prefix + key] = value
    return named


def changed_flags(config: Config, default: Config) -> list[str]:
    """Return the flags that turn a default config into another."""
    defaults = flat(to_dict(default))
    words: list[str] = []
    for name, value in flat(to_dict(config)).items():
        if value != defaults.get(name):
            words += flag(name, value)
    return words


def flag(name: str, value: Any) -> list[str]:
    """Return a flag in words, such as `--train.no-compile` or `--data.crop-scale 0.5 1.0`."""
    if isinstance(value, bool):
        section, dot, field_name = name.rpartition(".")
        if not value:
            name = f"{section}{dot}no-{field_name}"
        return [f"--{name}".replace("_", "-")]
    words = [f"--{name}".replace("_", "-")]
    items = value if isinstance(value, list) else [value]
    for item in items:
        parts = item if isinstance(item, list) else [item]
        words += [str(part) for part in parts]
    return words
