"""The stages of `eve learn`: probe, pilots, final run, results."""

import contextlib
import json
import math
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from eve_vl.config import HELD_OUT_TEST, DataConfig
from eve_vl.data.loader import open_sources, open_splits
from eve_vl.evaluation.runner import evaluated
from eve_vl.eve import Eve
from eve_vl.learn.plan import BUNDLED, FINAL, MASKED, MIN_STEPS, SIZES, UNTRAINED, Plan, pilot_of, shown
from eve_vl.metrics.intervals import MeasuredValue, paired, to_json
from eve_vl.report.drawing import Section, draw
from eve_vl.report.page import command_line, run_page, write_page
from eve_vl.run.loading import load_run, read_config
from eve_vl.run.results import result_of
from eve_vl.run.training import train
from eve_vl.train import StoppedError, processes
from eve_vl.train.checkpoint import checkpoint_folders, chosen_checkpoint, read_best
from eve_vl.train.log import read_log
from eve_vl.utils.console import is_main, pluralize, print_line, progress_line
from eve_vl.utils.errors import UserError
from eve_vl.utils.file_io import read_json, write_file
from eve_vl.utils.runtime import stop_signals

ROWS, REPORT, SCRIPT, INDEX = "rows.json", "report.html", "learn.sh", "index"
STARTS = (UNTRAINED, "bundled", MASKED, "masked_first", "random")  # the first is there after an early interruption
PILOT_SHARE = 0.3  # of the time that is left for training
OVERHEAD = 3.0  # seconds of a pilot to set up and to score, next to its steps
MARGIN = 0.97  # share of the remaining time that training may take


class Learner(Plan):
    """Training by the plan."""

    def probe(self) -> None:
        """Measure the cost of a step and plan the pilots.

        Raises UserError if the time is too short.
        """
        if "stages" in self.values:
            return
        pilot = {"start": BUNDLED, "scratch": False, "caption": "none", "size": SIZES[0], "steps": 100}
        sizes = [SIZES[0], *[size for size in SIZES[1:] if size <= self.values["data"]["side"]][:1]]
        masked = {MASKED: {"size": SIZES[0], "steps": 100}} if self.name == "search" else {}
        self.values["stages"] = {f"at {size} pixels": pilot | {"size": size} for size in sizes} | masked
        costs: dict[str, float] = {}
        for name in self.values["stages"]:
            print_line(f"measuring a step {name}")
            with self.output("probe"):
                costs[name], self.values["threads"] = self.clock.probe(self.config(name))
            self._refuse_if_short(next(iter(costs.values())))
        cost, num_pilots = next(iter(costs.values())), (5 if masked else 2) + len(sizes[1:])
        each = PILOT_SHARE * (self.values["seconds"] - self.elapsed() - self._reserve(cost)) / num_pilots - OVERHEAD
        pilot["steps"] = steps = max(MIN_STEPS, int(each / cost))
        is_usable = read_config(chosen_checkpoint(Path(BUNDLED))).task.name == self.job.task  # without training
        stages = ({UNTRAINED: pilot} if is_usable else {}) | {"bundled": pilot}
        start = {"start": f"pilots/{MASKED}" if masked else BUNDLED}
        if masked:
            stages[MASKED] = masked[MASKED] | {"steps": max(MIN_STEPS, int(steps * cost / costs[MASKED] / 2))}
            stages["masked_first"] = pilot | start | {"steps": max(MIN_STEPS, steps // 2)}
        stages["random"] = pilot | start | {"scratch": True}
        measured = ", ".join(f"{cost:.3g} s {name}" for name, cost in costs.items())
        plan = f"{num_pilots} pilots of {shown(steps * cost)} each, {steps:,} steps from {BUNDLED}"
        self.decide(f"a step takes {measured}; {plan}", costs=costs, stages=stages, sizes=sizes)

    def _reserve(self, cost: float) -> float:
        """Return the seconds to keep for evaluation and index, not measured yet."""
        facts, forward = self.values["data"], cost / min(128, max(2, self.values["data"]["train"] // 2)) / 2
        return 10 + forward * (facts["rows"] * (self.name == "search") + 5 * facts["val"] + 2 * facts["test"])

    def _refuse_if_short(self, cost: float) -> None:
        spent, reserve, given = self.elapsed(), self._reserve(cost), self.values["seconds"]
        steps, least = int(max(0.0, given - spent - reserve) / cost), 10 * MIN_STEPS
        if steps < least:
            enough = math.ceil((spent + reserve + 1.1 * least * cost) / 60)
            rest = f"{spent:.0f} s of checks and {reserve:.0f} s for evaluation and index, and {least} are needed"
            buys = f"is enough for {pluralize(steps, 'training step')} of {cost:.2g} s next to {rest}"
            raise UserError(f"--for {shown(given)}: {buys}; give at least --for {enough}m")

    def choose(self, question: str, names: Sequence[str]) -> str:
        """Train the pilots, compare them row by row, and return the name of the best."""
        for name in names:
            self.stage(name)
        if question not in self.values.setdefault("choices", {}):
            names = [name for name in names if name != MASKED]  # it has no score
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
        best = self.choose("start", [name for name in STARTS if name in self.values["stages"]])
        if self.name == "search":
            best = self._try("captions", best, {caption: {"caption": caption} for caption in ("words", "phrases")})
        for size in self.values["sizes"][1:]:
            share = self.values["costs"][f"at {SIZES[0]} pixels"] / self.values["costs"][f"at {size} pixels"]
            steps = max(MIN_STEPS, round(self.values["stages"][best]["steps"] * share))  # of equal time
            best = self._try("image size", best, {str(size): {"size": size, "steps": steps}})
        return best

    def _try(self, question: str, best: str, changes: Mapping[str, dict[str, Any]]) -> str:
        """Return the name of the best among a pilot and new ones that differ from it.

        changes: by the end of their names.
        """
        trained, names = "bundled" if best == UNTRAINED else best, [best]
        for end, changed in changes.items():
            names.append(f"{trained}_{end}")
            self.values["stages"].setdefault(names[-1], pilot_of(self.values["stages"][best]) | changed)
        return self.choose(question, names)

    def finish(self, best: str) -> None:
        """Train the final run with the settings of the best pilot in the rest of the time."""
        stages, pilot = self.values["stages"], pilot_of(self.values["stages"][best])
        if FINAL not in stages or self.values["seconds"] > self.values["planned"]:
            facts, evaluation = self.values["data"], stages[best]["scored_in"]
            cost = self.clock.cost(self.config(best)) or self.values["costs"][f"at {pilot['size']} pixels"]
            index = evaluation * facts["rows"] / facts["val"] * (self.name == "search")
            reserve = 5 + evaluation * (6 + facts["test"] / facts["val"]) + index
            left = max(0.0, MARGIN * (self.values["seconds"] - self.elapsed() - reserve))
            steps = max(MIN_STEPS, int(left / cost))
            if FINAL in stages:
                done = stages[FINAL]["steps"] if stages[FINAL].get("is_done") else self.reached(FINAL)
                steps, pilot = max(stages[FINAL]["steps"], done + int(left / cost)), pilot_of(stages[FINAL])
            new = stages | {FINAL: pilot | {"steps": steps}}
            why = f"{shown(left)} at {cost:.3g} s a step, {shown(reserve)} kept for evaluation and index"
            self.decide(f"final run: as {best}, {steps:,} steps ({why})", stages=new, planned=self.values["seconds"])
        self.stage(FINAL)

    def reached(self, name: str) -> int:
        """Return the step of a stage's newest checkpoint; 0 without one."""
        folders = checkpoint_folders(self.folder(name))
        return int(folders[-1].name.removeprefix("step_")) if folders else 0

    def stage(self, name: str) -> None:
        """Train a stage and score it, unless that is done."""
        if self.values["stages"][name].get("is_done"):
            return
        start, config = self.clock.now(), self.config(name)
        if name == UNTRAINED:
            self.save(stages=self.values["stages"] | {name: self.values["stages"][name] | self.score(name) | {"is_done": True}})
            return

        def line() -> str:
            step = max((row["step"] for row in read_log(config.out) if row["kind"] == "train"), default=0)
            left = f"about {shown(max(self.values['seconds'] - self.elapsed(), 0))} left"
            return f"{name}: step {step:,} of {config.train.steps:,}, {left} of {shown(self.values['seconds'])}"

        with stop_signals() as stop:
            with progress_line(line), self.output(config.out.relative_to(self.out)):
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
        path = self.out / folder / "run.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as log, contextlib.redirect_stdout(log):
            yield

    def score(self, name: str) -> dict[str, Any]:
        """Measure a run on the validation rows; return its numbers.

        Also writes the scores of its rows.
        """
        start, config = self.clock.now(), self.config(name)
        with self.output(config.out.relative_to(self.out)):
            sources = open_splits(config, self.job.rows)[1]
            run = load_run(Path(self.run(name)), processes.pick_device(self.device))
            found = evaluated(run, config.data.val_samples, sources, ablations=False, skip_invalid=True)
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


def conclude(learner: Learner) -> str:
    """Evaluate the best run so far on the test rows; return its name.

    Also indexes all images, and writes the report and the commands. Returns "" if no run can be used yet.
    """
    stages = learner.values.get("stages", {})
    for name in stages:
        is_usable = "start" in stages[name] and (learner.reached(name) or read_best(learner.folder(name)))
        if is_usable and not stages[name].get("is_done"):
            stages[name] |= learner.score(name)
    scored = {name: stage["score"] for name, stage in stages.items() if "score" in stage}
    if not scored:
        return ""
    best = max(scored, key=lambda name: (scored[name], name == FINAL))
    if stages.get(FINAL, {}).get("is_done") and best != FINAL:
        gain, low, high = certain(paired(learner.rows(best), learner.rows(FINAL)))
        chance = ", which may be chance" * (low <= 0 <= high)
        line = f"kept: {best}, {gain:+.3f} ({low:+.3f} to {high:+.3f}) over the final run on the validation rows{chance}"
        learner.values["lines"] += [line] * (line not in learner.values["lines"])
    config, index = learner.config(best), learner.out / INDEX
    with learner.output("."):
        run = load_run(Path(learner.run(best)), processes.pick_device(learner.device))
        tests = open_sources(learner.test, learner.data, config.input.image_size, learner.job.rows)
        tests = tests or open_splits(config, learner.job.rows)[2]
        found = evaluated(run, sum(map(len, tests)), tests, ablations=False, skip_invalid=True)
    comparison = run.evaluator.comparison(found.numbers)
    learner.values["result"] = {"run": best, "numbers": to_json(found.numbers), "comparison": comparison}
    processes.shutdown()
    if not is_main():
        return best
    with learner.output("."):
        if learner.name == "search":
            if learner.values.get("indexed") != (weights := f"{best} {run.step}"):  # an index belongs to one run's weights
                shutil.rmtree(index, ignore_errors=True)
            learner.values["indexed"] = weights
            Eve(run).index(learner.data.train, index, **learner.reading())
    learner.write()
    lines, given = learner.values["lines"], commands(learner)
    write_file(learner.out / SCRIPT, "\n".join(["#!/bin/sh", "set -e", *(f"# {line}" for line in lines), *given, ""]))
    result = result_of(run, found, learner.test or [HELD_OUT_TEST], {})
    body = draw("run_sections.html", "learned", lines=lines, commands=given, app=app(learner), result=result)
    with learner.output("."), contextlib.redirect_stderr(sys.stdout):  # the bundled run's own data are not here
        write_page(learner.out / REPORT, run_page(run, [Section("decisions", "Decisions", body)]))
    return best


def result_lines(learner: Learner) -> list[str]:
    """Return the numbers of the best run so far and what to do with it."""
    result, files = learner.values["result"], f"report: {learner.out / REPORT}; commands: {learner.out / SCRIPT}"
    where = f"{result['run']}, on {pluralize(learner.values['data']['test'], 'test row')} that no decision used"
    return [f"{where}: {result['comparison']}", f"{files}; time: {shown(learner.elapsed())}", f"open the page: {app(learner)}"]


def commands(learner: Learner) -> list[str]:
    """Return the commands that repeat the stages, evaluation and index."""
    trained = [name for name in learner.values["stages"] if (learner.folder(name) / "config.json").is_file()]
    run, index = learner.run(learner.values["result"]["run"]), str(learner.out / INDEX)
    given = {name: value for name, value in learner.reading().items() if value != getattr(DataConfig, name)}
    reading = [part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    more = [["eve", "evaluate", learner.job.task, run, "--skip-invalid", "--data"]]
    more[0] += [*learner.test, *reading] if learner.test else [HELD_OUT_TEST]
    more += [["eve", "index", *learner.data.train, "--run", run, "--out", index, *reading]] * (learner.name == "search")
    return [*(command_line(learner.config(name)) for name in trained), *map(shlex.join, more)]


def app(learner: Learner) -> str:
    """Return the command that opens the page."""
    run = learner.run(learner.values["result"]["run"])  # an index knows its run
    return shlex.join(["eve", "app", *(["--index", str(learner.out / INDEX)] if learner.name == "search" else [run])])
