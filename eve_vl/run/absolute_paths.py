"""Configs whose paths are absolute, for use from another folder."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from eve_vl.builtin.names import is_name
from eve_vl.config import HELD_OUT, Config
from eve_vl.config.generated_sources import generated
from eve_vl.config.plugins import origins
from eve_vl.data.source_names import absolute_spec
from eve_vl.utils.file_io import expand_user


def with_absolute_paths(config: Config) -> Config:
    """Return the config with absolute paths, for use from another folder."""
    data = _with_absolute_fields(config.data)
    data = replace(
        data,
        train=tuple(_absolute_data(spec) for spec in data.train),
        val=tuple(_absolute_data(spec) for spec in data.val),
    )
    code = dict(config.code) | origins(type(config.task), type(config.model))
    return replace(
        _with_absolute_fields(config),
        data=data,
        task=_with_absolute_fields(config.task),
        tokenizer=_with_absolute_fields(config.tokenizer),
        out=config.out,
        code=tuple(code.items()),
    )


def _absolute_data(spec: str) -> str:
    """Return a name of --data.train or --data.val: generated data, `held-out`, or absolute
    paths."""
    name_and_split = generated(spec)
    if name_and_split:
        return ":".join(name_and_split)
    if spec == HELD_OUT:
        return spec
    return absolute_spec(spec)


def _with_absolute_fields(section: Any) -> Any:
    """Return a section of a config whose fields of type Path are absolute; names of runs stay."""
    paths = {
        name: expand_user(value).absolute()
        for name, value in vars(section).items()
        if isinstance(value, Path) and not is_name(value)
    }
    return replace(section, **paths)
