"""`eve learn` in tests: a tiny bundled run, clocks that stand still, and calls."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from eve_vl.cli.main import main
from eve_vl.config import Config
from eve_vl.learn import clock, settings, stage_config
from eve_vl.recipes import get_recipe
from eve_vl.run.bench import StepSeconds
from eve_vl.train.trainer import Trainer

TRAIN_STEP = Trainer.train_step
SHAPES = ("circle", "square", "ring", "cross", "star", "moon")


class StillClock(clock.Clock):
    """A clock that stands still; each step costs a second."""

    def now(self) -> float:
        return 0.0

    def measure_step(self, config: Config) -> StepSeconds:
        return StepSeconds(
            median=1.0,
            fastest=1.0,
            total=0.0,
            num_threads=1,
        )

    def logged_step(self, config: Config) -> float:
        return 1.0


class KilledError(BaseException):
    """The end of a process, for which nothing cleans up."""


def kill() -> None:
    raise KilledError


def write_table(folder: Path) -> Path:
    """Write 60 images of noise, each with a list of tags, and return their table."""
    rng = np.random.default_rng(0)
    rows = []
    for row in range(60):
        pixels = rng.integers(0, 255, (24, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{row}.png")
        caption = f"{SHAPES[row % 6]}, {SHAPES[row % 5]}, no. {row}"
        rows.append({"image": f"{row}.png", "caption": caption})
    return write_rows(folder / "pairs.jsonl", rows)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read_rows(table: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in table.read_text().splitlines()]


def use_tiny_run(monkeypatch: pytest.MonkeyPatch, bundled: Path) -> None:
    """Put a tiny run in place of the bundled one, and have short pilots."""
    recipe = get_recipe("tiny")
    train = replace(recipe.train, batch_size=8)
    small = replace(recipe, train=train, data=replace(recipe.data, num_workers=0))
    monkeypatch.setattr(stage_config, "get_recipe", lambda _: small)
    monkeypatch.setattr(clock, "Clock", StillClock)
    monkeypatch.setattr(settings, "BUNDLED", str(bundled))
    monkeypatch.setattr(settings, "MIN_STEPS", 2)
    monkeypatch.setattr(settings, "SIZES", (32,))


def learn(*words: object) -> int:
    """Run `eve learn` and return its exit status."""
    try:
        main(["learn", *map(str, words)])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def interrupted_at(number: int, interrupt: Callable[[], None]) -> Callable[..., Any]:
    """Return a training step that is interrupted at its n-th call."""
    num_calls = 0

    def step(trainer: Trainer, batches: list[Any]) -> Any:
        nonlocal num_calls
        num_calls += 1
        if num_calls == number:
            interrupt()
        return TRAIN_STEP(trainer, batches)

    return step


def read_plan(out: Path) -> dict[str, Any]:
    return json.loads((out / "plan.json").read_text())


def decisions(out: Path) -> dict[str, Any]:
    """Return the plan without its sentences and result, which name folders."""
    plan = read_plan(out)
    return {name: value for name, value in plan.items() if name not in ("lines", "result")}
