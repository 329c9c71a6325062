"""The plan of `eve learn`: the request, its folder, and the decisions, which plan.json holds."""

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eve_vl.config import DataConfig
from eve_vl.data.opening import READING_OPTIONS
from eve_vl.learn import settings
from eve_vl.learn.clock import Clock, time_text
from eve_vl.learn.decisions import DataFacts, Decisions, Stage
from eve_vl.learn.learn_tasks import LEARN_TASKS
from eve_vl.train import devices, processes
from eve_vl.utils.console import is_main, print_line
from eve_vl.utils.errors import UserError
from eve_vl.utils.file_io import has_fields, read_json, write_file

PLAN_FILE = "plan.json"


@dataclass(frozen=True)
class Request:
    """What a call of `eve learn` asks for."""

    task: str
    data: DataConfig
    test: tuple[str, ...]
    seconds: float
    out: Path
    device: str

    def reading(self) -> dict[str, Any]:
        """Return the options of reading the sources."""
        return {name: getattr(self.data, name) for name in READING_OPTIONS}

    def to_json(self) -> dict[str, Any]:
        """Return what a resumed call must ask for again, as JSON."""
        reading = {
            name: None if value is None else str(value) for name, value in self.reading().items()
        }
        return {
            "task": self.task,
            "train": list(self.data.train),
            "val": list(self.data.val),
            "test": list(self.test),
            "reading": reading,
        }


class Plan:
    """The folder of one `eve learn` and its decisions."""

    def __init__(self, request: Request, clock: Clock):
        """Read the decisions of an earlier call. Raises UserError for those of another request."""
        self.request = request
        self.learn_task = LEARN_TASKS[request.task]
        self.is_search = request.task == "search"
        self.out = request.out.absolute()
        self.clock = clock
        processes.setup(devices.pick_device(request.device))
        self.decisions = self._earlier_decisions()
        self.decisions.seconds = request.seconds
        self.spent_before = self.decisions.spent

    def _earlier_decisions(self) -> Decisions:
        """Return the decisions of an earlier call, or new ones."""
        out = self.request.out
        new = Decisions(self.request.to_json(), self.request.seconds)
        file = self.out / PLAN_FILE
        if not file.is_file():
            if self.out.is_dir() and any(self.out.iterdir()):
                raise UserError(f"{out}: holds files, but no {PLAN_FILE}; choose another --out")
            return new

        earlier = read_decisions(file)
        if earlier.request != new.request:
            if earlier.stages:  # without one, nothing was trained
                raise UserError(
                    f"{out}: holds a run on other sources, with other options or for another "
                    "task; choose another --out"
                )
            return new
        if self.request.seconds < earlier.seconds:
            planned = time_text(earlier.seconds)
            raise UserError(f"{out}: was planned for {planned}; give --for that or more to resume")
        return earlier

    @property
    def stages(self) -> dict[str, Stage]:
        """Settings and results of the stages by name."""
        return self.decisions.stages

    @property
    def facts(self) -> DataFacts:
        """Facts about the data, which have been checked."""
        assert self.decisions.data is not None
        return self.decisions.data

    def elapsed(self) -> float:
        """Return the seconds spent so far, also by earlier calls, by the main process's clock.

        Every process of the group must call this.
        """
        return processes.from_main(self.elapsed_here)

    def elapsed_here(self) -> float:
        """Return the seconds spent so far by this process's clock."""
        return self.spent_before + self.clock.now()

    def decide(self, line: str) -> None:
        """Print a sentence about the latest decisions, and save both."""
        self.decisions.lines.append(line)
        self.save()
        print_line(line)

    def save(self) -> None:
        """Take the decisions of the main process in all, and write them.

        `decisions` is a new object after that in each of several processes.
        """
        self.decisions = processes.gather_objects(self.decisions)[0]
        self.write()

    def write(self) -> None:
        """Write the decisions and the time that is spent.

        Every process of the group must call this.
        """
        self.decisions.spent = self.elapsed()
        if is_main():
            self.out.mkdir(parents=True, exist_ok=True)
            text = json.dumps(self.decisions.to_json(), indent=1)
            write_file(self.out / PLAN_FILE, text + "\n")

    def forget_time(self) -> None:
        """Write the plan as if nothing was measured and no time was spent or given.

        Every process of the group must call this.
        """
        self.decisions.stages = {}
        self.decisions.seconds = 0.0
        self.spent_before = -self.clock.now()
        self.write()

    def folder(self, name: str) -> Path:
        """Return the run folder of a stage."""
        folder_name = re.sub(r"\W+", "_", name)
        if name.startswith(settings.FINAL):
            return self.out / folder_name
        return self.out / "pilots" / folder_name

    def run_name(self, name: str) -> str:
        """Return the folder of a stage's run, or the name of the bundled run."""
        if name == settings.AS_IT_IS:
            return settings.BUNDLED
        return str(self.folder(name))

    @contextlib.contextmanager
    def output_to_log(self, folder: str | Path) -> Iterator[None]:
        """Send output to run.log in a folder of the plan."""
        path = self.out / folder / "run.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as log, contextlib.redirect_stdout(log):
            yield


def read_decisions(file: Path) -> Decisions:
    """Read plan.json. Raises UserError for any other file."""
    values = read_json(file, dict)
    if has_fields(values, request=dict, seconds=float, spent=float, lines=list):
        with contextlib.suppress(KeyError, TypeError, AttributeError):
            return Decisions.from_json(values)
    raise UserError(f"{file}: is no plan of this version of eve learn; choose another --out")
