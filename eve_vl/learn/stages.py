"""The stages of `eve learn`: probe, pilots, final run."""

import contextlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from eve_vl.evaluation.runner import evaluated
from eve_vl.learn.plan import BUNDLED, FINAL, FINAL_MASKED, LOG, MASKED, MIN_STEPS, ROWS, SIZES, Plan, pilot_of, shown
from eve_vl.metrics.intervals import MeasuredValue, paired, to_json
from eve_vl.run.loading import load_run
from eve_vl.run.training import train
from eve_vl.train import StoppedError
from eve_vl.train.checkpoint import checkpoint_folders
from eve_vl.train.log import read_log
from eve_vl.utils.console import pluralize, print_line, progress_of_time
from eve_vl.utils.errors import UserError
from eve_vl.utils.file_io import read_json, write_file
from eve_vl.utils.runtime import stop_signals

PILOT_SHARE = 0.3  # of the time that is left for training
OVERHEAD = 3.0  # seconds of a pilot to set up and to score, next to its steps
MARGIN = 0.97  # share of the remaining time that training may take


class Learner(Plan):
    """Training by the plan."""

    def probe(self) -> None:
        """Measure the cost of a step and plan the pilots. Raises UserError if the time is too short."""
        if "stages" in self.values:
            return
        probes = {"start": BUNDLED, "scratch": False, "caption": "none", "steps": 100}
        sizes = [SIZES[0], *[size for size in SIZES[1:] if size <= self.values["data"]["side"]][:1]]
        self.values["stages"] = {f"at {size}": probes | {"size": size} for size in sizes}
        self.values["stages"] |= {MASKED: {"size": SIZES[0], "steps": 100}} if self.name == "search" else {}
        costs: dict[str, float] = {}
        for name in self.values["stages"]:
            print_line(f"measuring a step {name}{' pixels' * name[-1].isdigit()}")
            with self.output("probe"):
                costs[name], self.values["threads"] = self.clock.probe(self.config(name))
            self._refuse_if_short(costs[next(iter(costs))])
        cost, num_pilots = costs[f"at {SIZES[0]}"], (5 if self.name == "search" else 2) + len(sizes[1:])
        each = PILOT_SHARE * (self.values["seconds"] - self.elapsed() - self._reserve(cost)) / num_pilots - OVERHEAD
        each = max(each, MIN_STEPS * cost)
        steps = int(each / cost)
        pilot = {"caption": "none", "size": SIZES[0], "steps": steps}
        stages: dict[str, Any] = {"bundled": pilot | {"start": BUNDLED, "scratch": False}}
        if self.name == "search":
            stages[MASKED] = {"size": SIZES[0], "steps": max(MIN_STEPS, int(each / 2 / costs[MASKED]))}
            half = {"start": f"pilots/{MASKED}", "scratch": False, "steps": max(MIN_STEPS, steps // 2)}
            stages |= {"masked_first": pilot | half, "random": pilot | {"start": f"pilots/{MASKED}", "scratch": True}}
        else:
            stages["random"] = pilot | {"start": BUNDLED, "scratch": True}
        measured = ", ".join(f"{cost:.3g} s {name}{' pixels' * name[-1].isdigit()}" for name, cost in costs.items())
        self.decide(
            f"a step takes {measured}; {num_pilots} pilots of {shown(each)} each, {steps:,} steps from {BUNDLED}",
            costs=costs,
            stages=stages,
            threads=self.values["threads"],
            larger=sizes[1:],
        )

    def _reserve(self, cost: float) -> float:
        """Return the seconds to keep for evaluation and the index before they are measured."""
        facts, forward = self.values["data"], cost / min(128, max(2, self.values["data"]["train"] // 2)) / 2
        return 10 + forward * (facts["rows"] * (self.name == "search") + 5 * facts["val"] + 2 * facts["test"])

    def _refuse_if_short(self, cost: float) -> None:
        spent, reserve = self.elapsed(), self._reserve(cost)
        steps, least = int(max(0.0, self.values["seconds"] - spent - reserve) / cost), 10 * MIN_STEPS
        if steps >= least:
            return
        del self.values["stages"]
        rest = f"{spent:.0f} s of checks and {reserve:.0f} s for evaluation and index"
        enough = math.ceil((spent + reserve + 1.1 * least * cost) / 60)
        buys = f"is enough for {pluralize(steps, 'training step')} of {cost:.2g} s next to {rest}, and {least} are needed"
        raise UserError(f"--for {shown(self.values['seconds'])}: {buys}; give at least --for {enough}m")

    def choose(self, question: str, names: Sequence[str]) -> str:
        """Train the pilots, compare them row by row, and return the name of the best."""
        for name in names:
            self.stage(name)
        if question not in self.values.setdefault("choices", {}):
            names = [name for name in names if name != MASKED]  # it has no score of its own
            best = max(names, key=lambda name: self.values["stages"][name]["score"])
            rows, others = self.rows(best), [name for name in names if name != best]
            gains = {name: certain(paired(rows, self.rows(name))) for name in others}
            scores = ", ".join(f"{name} {self.values['stages'][name]['score']:.3f}" for name in (best, *others))
            by = "; ".join(f"{gain[0]:+.3f} ({gain[1]:+.3f} to {gain[2]:+.3f}) over {name}" for name, gain in gains.items())
            choices = self.values["choices"] | {question: {"best": best, "gains": gains}}
            self.decide(f"{question}: {best} ({scores}; row by row {by})", choices=choices)
        return self.values["choices"][question]["best"]

    def pilots(self) -> str:
        """Return the name of the best pilot."""
        starts = ("bundled", MASKED, "masked_first", "random")  # after an early interruption the first one is there
        best = self.choose("start", [name for name in starts if name in self.values["stages"]])
        if self.name == "search":
            tried = {f"{best}_{caption}": {"caption": caption} for caption in ("words", "phrases")}
            best = self._try("captions", best, tried)
        for size in self.values["larger"]:
            share = self.values["costs"][f"at {SIZES[0]}"] / self.values["costs"][f"at {size}"]
            steps = max(MIN_STEPS, round(self.values["stages"][best]["steps"] * share))  # of equal time
            best = self._try("image size", best, {f"{best}_{size}": {"size": size, "steps": steps}})
        return best

    def _try(self, question: str, best: str, changes: Mapping[str, dict[str, Any]]) -> str:
        """Return the name of the best among a pilot and new ones that differ from it."""
        new = {name: pilot_of(self.values["stages"][best]) | changed for name, changed in changes.items()}
        self.values["stages"] = self.values["stages"] | {
            name: each for name, each in new.items() if name not in self.values["stages"]
        }
        return self.choose(question, [best, *changes])

    def finish(self, best: str) -> None:
        """Train the final run with the settings of the best pilot in the rest of the time."""
        stages, pilot = self.values["stages"], self.values["stages"][best]
        is_masked = pilot.get("start") == f"pilots/{MASKED}" and not pilot["scratch"]
        if FINAL not in stages or self.values["seconds"] > self.values["planned"]:
            cost = self.clock.cost(self.config(best)) or self.values["costs"][f"at {pilot['size']}"]
            facts, evaluation = self.values["data"], pilot["scored_in"]
            index = evaluation * facts["rows"] / facts["val"] if self.name == "search" else 0.0
            reserve = 5 + evaluation * (6 + facts["test"] / facts["val"]) + index
            left = MARGIN * (self.values["seconds"] - self.elapsed() - reserve)
            new = dict(stages)
            if FINAL in stages:
                done = stages[FINAL]["steps"] if stages[FINAL].get("is_done") else self.reached(FINAL)
                steps = max(stages[FINAL]["steps"], done + int(left / cost))
                new[FINAL] = pilot_of(stages[FINAL]) | {"steps": steps}
            else:
                steps, start = max(MIN_STEPS, int(left / cost)), {}
                if is_masked:
                    masked_cost = self.clock.cost(self.config(MASKED)) or self.values["costs"][MASKED]
                    new[FINAL_MASKED] = {"size": SIZES[0], "steps": max(MIN_STEPS, int(left / 2 / masked_cost))}
                    steps, start = max(MIN_STEPS, steps // 2), {"start": FINAL_MASKED}
                new[FINAL] = pilot_of(pilot) | {"steps": steps} | start
            why = f"{shown(max(left, 0))} at {cost:.3g} s a step, {shown(reserve)} kept for evaluation and index"
            self.decide(f"final run: as {best}, {steps:,} steps ({why})", stages=new, planned=self.values["seconds"])
        for name in (FINAL_MASKED, FINAL):
            if name in self.values["stages"]:
                self.stage(name)

    def reached(self, name: str) -> int:
        """Return the step of a stage's newest checkpoint; 0 without one."""
        folders = checkpoint_folders(self.folder(name))
        return int(folders[-1].name.removeprefix("step_")) if folders else 0

    def stage(self, name: str) -> None:
        """Train a stage and score it, unless that is done."""
        if self.values["stages"][name].get("is_done"):
            return
        start, config = self.clock.now(), self.config(name)

        def line() -> tuple[float, str]:
            step = max((row["step"] for row in read_log(config.out) if row["kind"] == "train"), default=0)
            left = f"about {shown(max(self.values['seconds'] - self.elapsed(), 0))} left"
            return self.elapsed() / self.values["seconds"], f"{name}: step {step:,} of {config.train.steps:,}, {left}"

        with stop_signals() as stop:
            with progress_of_time(line), self.output(config.out.relative_to(self.out)):
                train(config)
            if stop:  # during the last step, which is no longer interrupted
                stopped = StoppedError(f"stopped after {name}")
                stopped.code = 128 + next(iter(stop))
                raise stopped
        measured = {} if "start" not in self.values["stages"][name] else self.score(name)
        done = self.values["stages"][name] | measured | {"is_done": True, "took": self.clock.now() - start}
        self.save(stages=self.values["stages"] | {name: done})

    @contextlib.contextmanager
    def output(self, folder: str | Path) -> Iterator[None]:
        """Send output to the log file of a folder."""
        path = self.out / folder / LOG
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as log, contextlib.redirect_stdout(log):
            yield

    def score(self, name: str) -> dict[str, Any]:
        """Measure a run on the validation rows; write its row scores and return its numbers."""
        start, config = self.clock.now(), self.config(name)
        with self.output(config.out.relative_to(self.out)):
            found = evaluated(load_run(config.out), config.data.val_samples, ablations=False, skip_invalid=True)
        rows = dict(found.choice_scores or found.row_scores)
        write_file(config.out / ROWS, json.dumps(rows, indent=1) + "\n")
        numbers, score = to_json(found.numbers), math.fsum(rows.values()) / len(rows)
        return {"score": score, "numbers": numbers, "scored_in": self.clock.now() - start}

    def rows(self, name: str) -> Mapping[str, float]:
        """Return the row scores of a scored stage."""
        return read_json(self.folder(name) / ROWS, dict)


def certain(gain: float) -> tuple[float, float, float]:
    """Return a difference and both ends of its interval."""
    low, high = (gain.low, gain.high) if isinstance(gain, MeasuredValue) else (-1.0, 1.0)
    return float(gain), low, high
