"""Tiny run folders for the tests of the transformers interface."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from eve_vl.config import Config
from eve_vl.run.writing import write_run
from eve_vl.tasks.task import Task
from eve_vl.tasks.vqa.config import VQAConfig
from helpers.tiny_config import tiny_config
from helpers.tiny_tasks import TOKENIZER, build, config_of


def tiny(name: str, **sections: dict) -> tuple[Config, Task[Any]]:
    """A config and its task: `masked` is masked words only, others are those of tiny_tasks."""
    if name == "masked":
        config = tiny_config(task={"mim_weight": 0.0}, **sections)
    else:
        config = config_of(name, **sections)
    return config, build(config)


def write(name: str, folder: Path, **sections: dict) -> Task[Any]:
    """Write a run folder and return its task."""
    config, task = tiny(name, **sections)
    config = dataclasses.replace(config, out=folder, init=folder / "init")
    if isinstance(config.task, VQAConfig):
        config = dataclasses.replace(config, task=VQAConfig(answers=folder / "answers.txt"))
    write_run(folder, config, TOKENIZER, task)
    return task


def noise_image(seed: int, height: int = 16, width: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
