"""The plan of `eve learn`: what was asked, each decision once it is made, and the configs that follow.

plan.json holds it. A resumed call reads it and measures nothing again.
"""

import json
import re
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eve_vl.config import Config, DataConfig
from eve_vl.recipes import get_finetune_recipe, get_recipe
from eve_vl.recipes.pretrain import changed
from eve_vl.run.bench import step_seconds
from eve_vl.run.loading import read_config
from eve_vl.run.training import with_absolute_paths
from eve_vl.train import processes
from eve_vl.train.checkpoint import chosen_checkpoint
from eve_vl.train.log import read_log
from eve_vl.utils.console import is_main, print_line
from eve_vl.utils.errors import UserError
from eve_vl.utils.file_io import read_json, write_file

PLAN, SCRIPT, REPORT, INDEX = "plan.json", "learn.sh", "report.html", "index"
ROWS, LOG = "rows.json", "run.log"  # in each run folder: row scores, output
BUNDLED = "builtin:icons"
MASKED, FINAL, FINAL_MASKED = "masked", "final", "final_masked"
MIN_STEPS = 20  # of a pilot
SIZES = (64, 96)  # sides of inputs, in pixels; the first is that of BUNDLED
NUM_TIMED = 4  # steps
COLUMNS = ("image_column", "text_column", "label_column")


@dataclass(frozen=True)
class Job:
    """A task that `eve learn` trains for."""

    rows: str
    """Kind of rows."""
    task: str
    """Name for `eve evaluate`."""
    recipe: str
    words: str
    """Name of a row for people."""


JOBS = {
    "search": Job("captions", "retrieval", "emoji_retrieval", "captioned image"),
    "questions": Job("questions", "vqa", "demo_vqa", "question"),
    "statements": Job("statements", "nlvr2", "demo_nlvr2", "statement"),
    "labels": Job("labels", "classification", "demo_classification", "labelled image"),
}


class Clock:
    """Measured times; tests replace it."""

    def __init__(self):
        self.start = time.monotonic() - time.process_time()  # imports count

    def now(self) -> float:
        """Return the seconds since this process started."""
        return time.monotonic() - self.start

    def probe(self, config: Config) -> tuple[float, int]:
        """Return the seconds of a training step and the number of threads."""
        return step_seconds(config, NUM_TIMED)

    def cost(self, config: Config) -> float:
        """Return the seconds of a step that a run has logged; 0 if unknown."""
        speeds = [row["samples_per_second"] for row in read_log(config.out) if row["kind"] == "train"]
        return config.train.batch_size / statistics.median(speeds) if speeds else 0.0


class Plan:
    """The folder of one `eve learn` and its decisions."""

    def __init__(self, job: str, data: DataConfig, test: tuple[str, ...], out: Path, seconds: float, device: str, clock: Clock):
        """Read the decisions of an earlier call. Raises UserError for those of another one."""
        self.name, self.job, self.out, self.device, self.clock = job, JOBS[job], out.absolute(), device, clock
        self.data, self.test = data, test
        processes.setup(processes.pick_device(device))
        asked = {"task": job, "train": list(data.train), "val": list(data.val), "test": list(test)}
        self.values: dict[str, Any] = {"asked": asked, "seconds": seconds, "spent": 0.0, "lines": []}
        if (file := self.out / PLAN).is_file():
            self.values = read_json(file, dict)
            if self.values["asked"] != asked:
                raise UserError(f"{out}: holds what was learnt from other sources or for another task; choose another --out")
            if seconds < self.values["seconds"]:
                raise UserError(f"{out}: was planned for {shown(self.values['seconds'])}; give --for that or more to resume")
        self.values["seconds"], self.before = seconds, self.values["spent"]

    def elapsed(self) -> float:
        """Return the seconds spent so far, also by earlier calls."""
        return self.before + self.clock.now()

    def decide(self, line: str, **values: Any) -> None:
        """Print and keep a decision, the same one in every process."""
        self.values["lines"].append(line)
        self.save(**values)
        print_line(line)

    def save(self, **values: Any) -> None:
        """Add values to the plan and write it, the main process's in all."""
        self.values = processes.gather_objects(self.values | values)[0]
        self.write()

    def write(self) -> None:
        """Write the plan and the time that is spent."""
        self.values["spent"] = self.elapsed()
        if is_main():
            self.out.mkdir(parents=True, exist_ok=True)
            write_file(self.out / PLAN, json.dumps(self.values, indent=1) + "\n")

    def with_data(self, config: Config) -> Config:
        """Return a config on the sources, with what is held out of them."""
        facts = self.values["data"]
        reading = {name: getattr(self.data, name) for name in ("format", "image_root", *COLUMNS)}
        held = {"val_fraction": facts["val_fraction"], "test_fraction": facts["test_fraction"]}
        return replace(config, data=replace(config.data, train=self.data.train, val=self.data.val, **reading, **held))

    def folder(self, name: str) -> Path:
        """Return the run folder of a stage."""
        return self.out / (name if name.startswith(FINAL) else f"pilots/{name}")

    def config(self, name: str) -> Config:
        """Return the config of a stage."""
        stage, facts = self.values["stages"][name], self.values["data"]
        if "start" not in stage:
            config = changed(
                get_recipe("icons"),
                "icons",
                input={"image_size": stage["size"], "text_length": facts["text_length"]},
                data={"augment": "none", "crop_scale": (0.7, 1.0), "flip": True},
                tokenizer={"vocab_size": facts["vocab"]},
            )
        else:
            init = Path(BUNDLED) if stage["start"] == BUNDLED else self.out / stage["start"]
            folder = chosen_checkpoint(init) if stage["start"] == BUNDLED or not stage["scratch"] else init
            config = get_finetune_recipe(self.job.recipe, replace(read_config(folder), out=init))
            task, caption = config.task, {"caption_augment": stage["caption"]} if self.name == "search" else {}
            own = {"min_answer_count": max(1, min(9, facts["train"] // 500)), "multilabel": facts["many_labels"]}
            task = replace(task, **{field: value for field, value in own.items() if hasattr(task, field)})
            config = changed(replace(config, init=init, scratch=stage["scratch"], task=task), self.job.recipe, data=caption)
            config = replace(config, input=replace(config.input, image_size=stage["size"]))
        steps, batch = stage["steps"], min(config.train.batch_size, max(2, facts["train"] // 2))
        every = max(1, steps // 5) if name == FINAL else steps
        train = {"steps": steps, "batch_size": batch, "threads": self.values.get("threads", 0), "device": self.device}
        train |= {"val_every": every, "save_every": max(1, steps // 10), "log_every": max(1, min(50, steps // 10))}
        return with_absolute_paths(replace(self.with_data(changed(config, config.recipe, train=train)), out=self.folder(name)))


def pilot_of(stage: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a stage without its results."""
    return {name: stage[name] for name in ("start", "scratch", "caption", "size", "steps")}


def seconds_of(text: str) -> float:
    """Return the seconds of a time such as 30m, 1h30m or 90s. Raises UserError."""
    found = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text.replace(" ", ""))
    seconds = sum(int(part or 0) * unit for part, unit in zip(found.groups(), (3600, 60, 1), strict=True)) if found else 0
    if not seconds:
        raise UserError(f"--for {text}: is no time; give one such as 30m, 1h30m or 90s")
    return float(seconds)


def shown(seconds: float) -> str:
    """Return a time as text: 45s, 12m, 1h05m."""
    if seconds < 100:
        return f"{seconds:.0f}s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m"
