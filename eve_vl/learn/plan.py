"""The plan of `eve learn`.

It holds the request, the checked data, each decision once it is made, and the configs that follow.
plan.json holds it. A resumed call reads it and measures nothing again.
"""

import contextlib
import json
import re
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eve_vl.builtin.names import folder_of
from eve_vl.config import HELD_OUT, Config, DataConfig
from eve_vl.data.decoding import read_image
from eve_vl.data.image_refs import Unencoded
from eve_vl.data.opening import READING_OPTIONS, open_sources, open_splits
from eve_vl.data.records import Source, usable_rows
from eve_vl.data.row_hashes import hash_of, image_key
from eve_vl.data.source_check import check_source
from eve_vl.data.split_file import write_split
from eve_vl.recipes import get_finetune_recipe, get_recipe
from eve_vl.recipes.settings import changed
from eve_vl.run.absolute_paths import with_absolute_paths
from eve_vl.run.bench import step_seconds
from eve_vl.run.loading import read_config
from eve_vl.train import devices, processes
from eve_vl.train.checkpoint_folders import chosen_checkpoint
from eve_vl.train.run_log import read_log
from eve_vl.utils.console import is_main, pluralize, print_line
from eve_vl.utils.errors import BadSampleError, UserError
from eve_vl.utils.file_io import has_fields, read_json, write_file

PLAN, SPLIT = "plan.json", "split.json"
BUNDLED = "builtin:drawings"
AS_IT_IS, BASE, MASKED, FINAL = (
    "bundled, as it is",
    "bundled",
    "masked",
    "final",
)  # BASE: the first pilot
MIN_STEPS = 20  # of a pilot
FROM_OWN = 1e-3  # learning rate of a search that does not start from BUNDLED
SIZES = (64, 96)  # sides of inputs, in pixels; the first is that of BUNDLED
NUM_TIMED = 4  # steps
MIN_ROWS, MIN_CAPTIONS = 50, 10
# of the rows of --val or --test: images that other sources have too, noted; above, they are refused
MOST_SHARED = 0.05
HELD_ROWS, MOST_HELD = 500, 0.1  # rows for validation and for the test, each; at most this share


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
    "search": Job("captions", "retrieval", "search_small", "captioned image"),
    "questions": Job("questions", "vqa", "questions_small", "question"),
    "statements": Job("statements", "nlvr2", "statements_small", "statement"),
    "labels": Job("labels", "classification", "labels_small", "labelled image"),
}


class Clock:
    """Measured times; tests replace it."""

    def __init__(self, start: float):
        self.start = start

    def now(self) -> float:
        """Return the wall seconds since the start."""
        return time.monotonic() - self.start

    def probe(self, config: Config) -> tuple[float, int]:
        """Return the seconds of a training step and the number of threads."""
        return step_seconds(config, NUM_TIMED)

    def cost(self, config: Config) -> float:
        """Return the seconds of a step that a run has logged; 0 if unknown."""
        speeds = [
            row["samples_per_second"] for row in read_log(config.out) if row["kind"] == "train"
        ]
        return config.train.batch_size / statistics.median(speeds) if speeds else 0.0


class Plan:
    """The folder of one `eve learn` and its decisions."""

    def __init__(
        self,
        job: str,
        data: DataConfig,
        test: tuple[str, ...],
        out: Path,
        seconds: float,
        device: str,
        clock: Clock,
    ):
        """Read the decisions of an earlier call.

        Raises UserError for those of another one.
        """
        self.name, self.job, self.out, self.device, self.clock = (
            job,
            JOBS[job],
            out.absolute(),
            device,
            clock,
        )
        self.data, self.test = data, test
        processes.setup(devices.pick_device(device))
        reading = {
            name: None if value is None else str(value) for name, value in self.reading().items()
        }
        asked = {
            "task": job,
            "train": list(data.train),
            "val": list(data.val),
            "test": list(test),
            "reading": reading,
        }
        self.values: dict[str, Any] = {
            "asked": asked,
            "seconds": seconds,
            "spent": 0.0,
            "lines": [],
        }
        if (file := self.out / PLAN).is_file():
            found = read_json(file, dict)
            if not has_fields(found, asked=dict, seconds=float, spent=float, lines=list):
                raise UserError(f"{file}: is no plan of eve learn; choose another --out")
            if found["asked"] == asked:
                self.values = found
            elif "stages" in found:  # without one, nothing was trained
                raise UserError(
                    f"{out}: holds a run on other sources, with other options or for another task; choose another --out"
                )
            if seconds < self.values["seconds"]:
                raise UserError(
                    f"{out}: was planned for {shown(self.values['seconds'])}; give --for that or more to resume"
                )
        elif self.out.is_dir() and any(self.out.iterdir()):
            raise UserError(f"{out}: holds files, but no {PLAN}; choose another --out")
        self.values["seconds"], self.before = seconds, self.values["spent"]

    @property
    def stages(self) -> dict[str, dict[str, Any]]:
        """Settings and results of the stages by name."""
        return self.values.get("stages", {})

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
        """Return a config on the sources, with their held-out splits."""
        held = dict(self.values["data"]["held"])
        if "split_file" in held:
            held["split_file"] = self.out / held["split_file"]
        skips = HELD_OUT not in self.data.val  # held-out always does
        sources = {"train": self.data.train, "val": self.data.val, "skip_invalid_val": skips}
        data = replace(config.data, **sources, **self.reading(), **held)
        return replace(config, data=data)

    def reading(self) -> dict[str, Any]:
        """Return the options of reading the sources."""
        return {name: getattr(self.data, name) for name in READING_OPTIONS}

    def folder(self, name: str) -> Path:
        """Return the run folder of a stage."""
        return self.out / ("" if name.startswith(FINAL) else "pilots") / re.sub(r"\W+", "_", name)

    def run(self, name: str) -> str:
        """Return the run of a stage."""
        return BUNDLED if name == AS_IT_IS else str(self.folder(name))

    def config(self, name: str) -> Config:
        """Return the config of a stage."""
        stage, facts = self.stages[name], self.values["data"]
        if "start" not in stage:
            data = {"augment": "none", "crop_scale": (0.7, 1.0), "flip": True}
            sizes, tokenizer = (
                {"text_length": facts["text_length"], "patch_size": 16},
                {"vocab_size": facts["vocab"]},
            )
            model = {
                "depth": 4,
                "num_deep_blocks": 2,
            }  # with which the pilots were measured, like patch_size (LOG.md)
            config = changed(
                get_recipe("icons"),
                "icons",
                data=data,
                input=sizes,
                model=model,
                tokenizer=tokenizer,
            )
        else:
            init = Path(BUNDLED) if stage["start"] == BUNDLED else self.out / stage["start"]
            folder = (
                chosen_checkpoint(folder_of(init))
                if stage["start"] == BUNDLED or not stage["scratch"]
                else init
            )
            config = get_finetune_recipe(self.job.recipe, replace(read_config(folder), out=init))
            task, caption = (
                config.task,
                {"caption_augment": stage["caption"]} if self.name == "search" else {},
            )
            own = {
                "min_answer_count": max(1, min(9, facts["train"] // 500)),
                "multilabel": facts["many_labels"],
            }
            task = replace(
                task, **{field: value for field, value in own.items() if hasattr(task, field)}
            )
            config = changed(
                replace(config, init=init, scratch=stage["scratch"], task=task),
                self.job.recipe,
                data=caption,
            )
        steps, batch = stage["steps"], min(config.train.batch_size, max(2, facts["train"] // 2))
        every = max(1, steps // 5) if name == FINAL else steps
        train = {"seed": stage.get("seed", 0), "steps": steps, "batch_size": batch}
        train |= {"threads": self.values.get("threads", 0), "device": self.device}
        train |= (
            {"lr": FROM_OWN}
            if self.name == "search" and stage.get("start", BUNDLED) != BUNDLED
            else {}
        )
        train |= {
            "val_every": every,
            "save_every": max(1, steps // 10),
            "log_every": max(1, min(50, steps // 10)),
        }
        config = changed(config, config.recipe, train=train, input={"image_size": stage["size"]})
        return with_absolute_paths(replace(self.with_data(config), out=self.folder(name)))


def pilot_of(stage: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a stage without its results."""
    return {name: stage[name] for name in ("start", "scratch", "caption", "size", "steps")}


def shown(seconds: float) -> str:
    """Return a time as text: 45s, 12m, 1h05m."""
    if seconds < 100:
        return f"{seconds:.0f}s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m"


def check(plan: Plan) -> None:
    """Read all rows and choose the validation and test splits.

    Raises UserError for data that teach nothing.
    """
    if "data" in plan.values:
        return
    where, sources = (
        " ".join(plan.data.train),
        open_sources(plan.data.train, plan.data, SIZES[0], plan.job.rows),
    )
    reports = [check_source(source) for source in sources]
    rows, broken = (
        sum(each)
        for each in zip(*((report.usable, len(report.broken)) for report in reports), strict=True)
    )
    many = pluralize(
        rows, plan.job.words
    ) + f", {broken:,} unusable (eve data check lists them)" * (broken > 0)
    if rows < MIN_ROWS:
        raise UserError(
            f"{where}: {many}; at least {MIN_ROWS} are needed to train and to measure on others"
        )
    known = [row for source in sources for _, row in usable_rows(source)]
    texts = [text for row in known for text in row.texts]
    if plan.name == "search" and (distinct := len(set(texts))) < MIN_CAPTIONS:
        problem = f"{pluralize(distinct, 'distinct caption')} for {pluralize(rows, 'image')}"
        raise UserError(
            f"{where}: {problem}, too few to tell images apart; give each image captions of its own"
        )
    used = {" ".join(plan.data.train): sources}
    for flag, specs in {"--val": plan.data.val, "--test": plan.test}.items():
        if specs and specs != (HELD_OUT,):
            used[" ".join(specs)] = _refuse_overlap(plan, used, flag, specs)
    lengths = sorted(len(text.split()) for text in texts) or [1]
    sides = [report.width.median for report in reports if report.width]
    # twice the share of unusable rows, because the rows of a run are a sample
    limit = min(1.0, round(0.01 + 2 * broken / (rows + broken), 3))
    facts: dict[str, Any] = {
        "rows": rows,
        "side": min(sides, default=SIZES[0]),
        "text_length": min(64, max(8, round(1.4 * lengths[int(0.99 * (len(lengths) - 1))]) + 3)),
        "vocab": min(8000, max(1000, len({word for text in texts for word in text.split()}))),
        "held": held_of(plan, sources, rows) | {"max_invalid_fraction": limit},
        "many_labels": any(len(getattr(row, "labels", ())) > 1 for row in known),
    }
    plan.values["data"] = facts
    splits = open_splits(plan.with_data(get_recipe("icons")), plan.job.rows)
    parts = [sum(map(len, part)) for part in (splits.train, splits.val, splits.test)]
    parts[0] -= (
        broken  # held-out parts of a split file have usable rows only; of fractions, nearly so
    )
    parts[2] = parts[2] or sum(
        len(source) for source in open_sources(plan.test, plan.data, SIZES[0], plan.job.rows)
    )
    facts |= dict(zip(("train", "val", "test"), parts, strict=True))
    kept = "{train:,} to train on, {val:,} to choose by, {test:,} for the final numbers only".format_map(
        facts
    )
    plan.decide(f"data: {many}: {kept}", data=facts)


def held_of(plan: Plan, sources: Sequence[Source], rows: int) -> dict[str, Any]:
    """Choose validation and test rows; return the config options that name them.

    In a search, rows that share a caption or an image are in one part.
    """
    share = min(MOST_HELD, HELD_ROWS / rows)
    parts, file = (
        [int(share * rows) * is_held for is_held in (plan.data.val == (HELD_OUT,), not plan.test)],
        plan.out / SPLIT,
    )
    if (
        plan.name == "search"
        and any(parts)
        and processes.from_main(lambda: write_split(file, sources, *parts))
    ):
        return {"split_file": SPLIT}
    fractions = zip(("val_fraction", "test_fraction"), parts, strict=True)
    return {name: round(share, 4) for name, num in fractions if num}


def _refuse_overlap(
    plan: Plan, used: Mapping[str, Sequence[Source]], flag: str, specs: Sequence[str]
) -> list[Source]:
    """Return the sources of a flag.

    Raises UserError if they share more than MOST_SHARED of their images with others.
    """
    found = open_sources(specs, plan.data, SIZES[0], plan.job.rows)
    rows = list(_contents(found))
    for where, sources in used.items():
        known = {content for row in _contents(sources) for content in row}
        if same := sum(not known.isdisjoint(row) for row in rows):
            problem = (
                f"{same:,} of {pluralize(len(rows), 'row')} show images that are also in {where}"
            )
            if same > MOST_SHARED * len(rows):
                fix = f"name other data, or leave {flag} out, and a part of the sources takes its place"
                raise UserError(f"{flag} {' '.join(specs)}: {problem}; {fix}")
            plan.decide(f"note: {problem}, so the numbers on them are a little too good")
    return found


def _contents(sources: Iterable[Source]) -> Iterator[list[int]]:
    """Yield a hash of the content of each image, for each usable row."""
    for source in sources:
        for _, row in usable_rows(source, images=True):
            images = [(each, row.where) for each in row.images]
            with contextlib.suppress(BadSampleError):
                yield [
                    image_key(*pair)
                    if isinstance(pair[0], Unencoded)
                    else hash_of(read_image(*pair))
                    for pair in images
                ]


def kind_of(data: DataConfig) -> str:
    """Return the job that the columns of the sources suggest. Raises UserError."""
    (source, *_) = open_sources(data.train, data, SIZES[0], "auto")
    table: Any = source
    found = next(
        (row.KIND for _, row in usable_rows(source, range(min(len(source), 100)))), "captions"
    )
    if found == "labels" and "captions" in getattr(table, "names", ()):
        return "search"
    jobs = {job.rows: name for name, job in JOBS.items()}
    if found not in jobs:
        problem = f"holds {found} only; eve learn needs captions, questions, statements or labels"
        if len(getattr(table, "names", ())) > 1:
            lacking, option = ("images", "image") if found == "texts" else ("captions", "text")
            raise table.lacks(
                problem, f"If one holds {lacking}, name it with --data.{option}-column"
            )
        raise UserError(f"{data.train[0]}: {problem}")
    return jobs[found]
