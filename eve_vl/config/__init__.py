"""A run as one frozen `Config` that validates itself.

Each section lists its own problems. `Config` reports all of them at once, by their names on the command line.
"""

import dataclasses
import json
import os
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from reprlib import repr as shown
from typing import Any, Literal

import tyro

from eve_vl.config.base import (
    Section,
    all_kinds,
    class_for,
    define,
    find_kind,
    kinds_of,
    subclasses,
)
from eve_vl.config.model import (
    LARGEST_CONV_PATCH,
    DualEncoderConfig,
    EveModelConfig,
    FFNPolicy,
    ModelConfig,
)
from eve_vl.config.tasks import (
    ClassificationConfig,
    ContrastMatchConfig,
    HeadlessConfig,
    MaskedSignalConfig,
    NLVR2Config,
    RetrievalConfig,
    TaskConfig,
    VQAConfig,
)
from eve_vl.config.training import (
    HELD_OUT,
    HELD_OUT_TEST,
    DataConfig,
    InputConfig,
    TokenizerConfig,
    TrainConfig,
    generated,
)
from eve_vl.utils.errors import UserError, nearest
from eve_vl.utils.file_io import require_type
from eve_vl.utils.frozen import Frozen

FORMAT = 3
"""Version of config.json."""


class Config(Frozen):
    """One run: recipe, folder, the run to start from, and sections."""

    recipe: tyro.conf.Suppress[str]
    """Name of its recipe."""
    code: tyro.conf.Suppress[tuple[tuple[str, str], ...]] = ()
    """External code of its sections: files with checksums, packages with versions."""
    out: Path
    """Run folder."""
    init: Path | None = None
    """Run to start from: its encoder, its tokenizer, and the heads that the task shares with it."""
    init_allow_missing: tuple[str, ...] = ()
    """Encoder parameters that the --init run may lack and that start at random, as name patterns, e.g.
    `encoder.blocks.*.ffn.*`. New heads need no mention."""
    scratch: bool = False
    """Take only the shape and the tokenizer of --init; start from random weights, for comparison."""
    input: InputConfig = field(default_factory=InputConfig)
    model: ModelConfig = field(default_factory=EveModelConfig)
    task: TaskConfig = field(default_factory=MaskedSignalConfig)
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self):
        task, model, train, init = self.task, self.model, self.train, self.init
        by_task = task.problems_with_rows(self.data.modality) + model.problems_with(
            task, self.data.modality
        )
        by_task += task.problems_with_pairs(train.batch_size // max(1, train.accumulation))
        names = ("input", "model", "task", "data", "tokenizer", "train")
        found = [
            f"{name}.{problem}" for name in names for problem in getattr(self, name).validate()
        ]
        found += [f"task.{problem}" for problem in by_task]
        stem, patch = getattr(model, "stem", "linear"), self.input.patch_size
        sizes = (
            f"from 2 to {LARGEST_CONV_PATCH}" if patch.bit_count() == 1 else "that is a power of 2"
        )
        is_unfit = stem != "linear" and (
            patch.bit_count() != 1
            or (stem == "patch_conv" and not 2 <= patch <= LARGEST_CONV_PATCH)
        )
        is_masked = (
            isinstance(task, ContrastMatchConfig)
            and task.itc_masked_image
            and not (task.mlm_weight or task.itm_weight)
        )
        whole = "task.itc_masked_image with model.stem conv, which must see whole images during training too"
        is_scaled = init is None and train.head_lr_multiplier != 1
        allows_nothing = self.init_allow_missing and (init is None or self.scratch)
        changes_captions, pairs_rows = self.data.caption_augment != "none", self.data.pair_captions
        conflicts = {
            f"data.caption_augment has no effect with task {task.name}": changes_captions
            and not task.augments_captions,
            "data.pair_captions with data.train_weights, which repeats rows": pairs_rows
            and self.data.train_weights,
            f"model.stem {stem} needs an input.patch_size {sizes} (value given: {patch})": is_unfit,
            f"{whole}: set task.mlm_weight or task.itm_weight above 0, or model.stem to linear": is_masked
            and stem == "conv",
            "scratch limits what --init gives, but there is no --init; name a run": self.scratch
            and init is None,
            "tokenizer.path has no effect with --init, which brings its run's tokenizer": init
            and self.tokenizer.path,
            "train.head_lr_multiplier has no effect without --init: all parameters are new": is_scaled,
            "init_allow_missing has no effect without weights from an --init run": allows_nothing,
        }
        found += [sentence for sentence, holds in conflicts.items() if holds]
        if found:
            raise UserError("; ".join(found))


def config_to_json(config: Config) -> str:
    """Return the content of a config.json."""
    return json.dumps({"format": FORMAT} | to_dict(config), indent=1)


def config_from_dict(values: dict[str, Any], where: str) -> Config:
    """Return the config in a config.json. Raises UserError; `where` names the file."""
    if not isinstance(values, dict):
        raise UserError(f"{where}: not a run's config: expected a JSON object")
    code = read_value(tuple[tuple[str, str], ...], values.get("code", []), where, "code")
    try:
        return from_dict(Config, check_format(values, where), where)
    except UnknownKindError as error:
        if not code:
            raise
        made_with = ", ".join(f"{name} ({version})" for name, version in code)
        how = "install the package; a file runs only if you name it, with --code FILE.py or in the variable EVE_CODE"
        raise UserError(
            f"{where}: the {error.kind} needs {made_with}, which is not loaded: {how}"
        ) from None


class UnknownKindError(UserError):
    """A section of an unknown kind."""

    def __init__(self, where: str, kind: str, problem: str):
        self.kind = kind
        super().__init__(f"{where}: {problem}")


def to_dict(config: Any) -> Any:
    """Return a config or a value in it as JSON values."""
    if dataclasses.is_dataclass(config):
        tag = {"name": config.name} if isinstance(config, Section) else {}
        return tag | {
            each.name: to_dict(getattr(config, each.name))
            for each in dataclasses.fields(config)
            if each.init
        }
    if isinstance(config, tuple):
        return [to_dict(item) for item in config]
    return str(config) if isinstance(config, Path) else config


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


def from_dict(cls: type, values: Mapping[str, Any], where: str, prefix: str = "") -> Any:
    """Return the config from `to_dict`; a missing key takes its default.

    Raises UserError for unknown keys, missing keys without a default and values of another type. `where` names the file,
    `prefix` the section.
    """
    all_hints = typing.get_type_hints(cls)
    hints = {each.name: all_hints[each.name] for each in dataclasses.fields(cls) if each.init}
    if unknown := [key for key in values if key not in hints]:
        raise UserError(f"{where}: unknown key {nearest(unknown[0], hints)}")
    for each in dataclasses.fields(cls):
        if (
            each.name in hints
            and each.name not in values
            and each.default is each.default_factory is dataclasses.MISSING
        ):
            raise UserError(f"{where}: key {each.name!r} is missing from section {cls.__name__}")
    typed = {
        key: read_value(hints[key], value, where, f"{prefix}{key}") for key, value in values.items()
    }
    try:
        return cls(**typed)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def read_value(hint: Any, value: Any, where: str, key: str) -> Any:
    """Return a JSON value in the declared type of the field `key`. Raises UserError."""
    origin, args = typing.get_origin(hint) or hint, typing.get_args(hint)
    if isinstance(hint, types.UnionType):
        return None if value is None else read_value(args[0], value, where, key)
    if origin is Literal:
        if value not in args:
            raise UserError(
                f"{where}: {key} {shown(value)} is not one of {', '.join(map(str, args))}"
            )
        return value
    try:
        require_type(
            value,
            dict
            if dataclasses.is_dataclass(hint)
            else {tuple: list, Path: str}.get(origin, origin),
        )
        if isinstance(value, str):
            os.fsencode(value.replace("\0", "\ud800"))  # no file name can hold these
    except ValueError as error:
        raise UserError(f"{where}: {key} {shown(value)}: {error}") from None
    if origin is tuple:
        hints = args[:1] * len(value) if args[1:] == (...,) else args
        if len(hints) != len(value):
            raise UserError(
                f"{where}: {key} {shown(value)} has {len(value)} values, expected {len(hints)}"
            )
        return tuple(
            read_value(hints[place], item, where, f"{key}[{place}]")
            for place, item in enumerate(value)
        )
    if not dataclasses.is_dataclass(hint):
        return Path(value) if hint is Path else value
    kind, value = typing.cast(type, hint), typing.cast(dict[str, Any], value)
    what = kind.__name__.removesuffix("Config").lower()
    if issubclass(kind, Section):
        name, value = (
            value.get("name"),
            {field_name: item for field_name, item in value.items() if field_name != "name"},
        )
        found = find_kind(kind, f"{what}s", name) if isinstance(name, str) else None
        if found is None:
            known = nearest(str(name), all_kinds(kind, f"{what}s"))
            raise UnknownKindError(where, f"{what} {name!r}", f"no {what} {known}")
        kind = found
    return from_dict(kind, value, where, f"{key}.")


def check_format(values: dict[str, Any], where: str) -> dict[str, Any]:
    """Return the values of a config.json without its format.

    Raises UserError unless the format is FORMAT.
    """
    form = values.get("format", 1)
    if form != FORMAT:
        fix = "update the package" if type(form) is int and form > FORMAT else "train the run again"
        raise UserError(
            f"{where}: config format {shown(form)} is not supported, this version reads {FORMAT}; {fix}"
        )
    return {key: value for key, value in values.items() if key != "format"}
