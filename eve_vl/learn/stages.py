"""The stages of `eve learn`: probe, pilots, final run, results."""

import contextlib
import json
import math
import re
import shlex
import shutil
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from eve_vl.builtin.names import folder_of
from eve_vl.config import HELD_OUT_TEST, DataConfig
from eve_vl.data.opening import open_sources, open_splits
from eve_vl.evaluation.evaluate import evaluated
from eve_vl.eve import Eve
from eve_vl.learn.plan import (
    AS_IT_IS,
    BASE,
    BUNDLED,
    FINAL,
    MASKED,
    MIN_STEPS,
    SIZES,
    Plan,
    pilot_of,
    shown,
)
from eve_vl.metrics.intervals import MeasuredValue, paired, to_json
from eve_vl.metrics.names import meaning
from eve_vl.pages.drawing import Section, draw
from eve_vl.report.page import command_line, run_page, write_page
from eve_vl.run.average_runs import average
from eve_vl.run.loading import load_run, read_config
from eve_vl.run.results import result_of
from eve_vl.run.training import train
from eve_vl.train import devices, processes
from eve_vl.train.best_folder import read_best
from eve_vl.train.checkpoint_folders import checkpoint_folders, chosen_checkpoint, delete_folders
from eve_vl.train.run_log import read_log
from eve_vl.utils.console import is_main, pluralize, print_line, progress_line
from eve_vl.utils.errors import StoppedError, UserError
from eve_vl.utils.file_io import read_json, write_file
from eve_vl.utils.signals import stop_signals

ROWS, REPORT, SCRIPT, INDEX = "rows.json", "report.html", "learn.sh", "index"
PILOT_SHARE = 0.3  # of the time that is left for training, for what pilots take in all
FINAL_SHARE = 0.5  # of the time that is left after the first pilot: the least for the final run
EPOCHS = 8  # at least, of each final run where there are several
MOST_RUNS = 8  # final runs that are planned at once
MARGIN = 0.97  # share of the remaining time that training may take


class Learner(Plan):
    """Training by the plan."""

    def probe(self) -> None:
        """Measure the cost of a step and plan the pilots.

        Raises UserError if the time is too short.
        """
        if "stages" in self.values:
            return
        pilot = {
            "start": BUNDLED,
            "scratch": False,
            "caption": "none",
            "size": SIZES[0],
            "steps": 100,
        }
        self.values["stages"], start = {BASE: pilot}, self.clock.now()
        print_line("measuring a training step")
        with self.output("probe"):
            cost, self.values["threads"] = self.clock.probe(self.config(BASE))
        setup = self.clock.now() - start
        self._refuse_if_short(cost, setup)
        left = PILOT_SHARE * (self.values["seconds"] - self.elapsed() - self.reserve(cost, setup))
        # at least half of a pilot is steps
        num = max(
            2,
            min(
                7 if self.name == "search" else 3,
                int(left / (setup + max(setup, MIN_STEPS * cost))),
            ),
        )
        pilot["steps"] = steps = max(MIN_STEPS, int((left / num - setup) / cost))
        is_usable = (
            read_config(chosen_checkpoint(folder_of(BUNDLED))).task.name == self.job.task
        )  # without training
        stages = ({AS_IT_IS: pilot} if is_usable else {}) | {BASE: pilot}
        plan = f"{num} pilots of {shown(steps * cost)} each, {steps:,} steps from {BUNDLED}"
        self.decide(f"a step takes {cost:.3g} s; {plan}", stages=stages, num_pilots=num, choices={})

    def reserve(self, cost: float, setup: float) -> float:
        """Return the seconds to keep for evaluation, index and report.

        cost: of a step. setup: of a stage next to its steps.
        """
        facts, forward = (
            self.values["data"],
            cost / min(128, max(2, self.values["data"]["train"] // 2)) / 2,
        )
        return setup + forward * (
            facts["rows"] * (self.name == "search") + 5 * facts["val"] + 2 * facts["test"]
        )

    def _refuse_if_short(self, cost: float, setup: float) -> None:
        spent, reserve, given = (
            self.elapsed(),
            2 * setup + self.reserve(cost, setup),
            self.values["seconds"],
        )
        steps, least = int(max(0.0, given - spent - reserve) / cost), 10 * MIN_STEPS
        if steps < least:
            enough = math.ceil(
                (spent + reserve + 1.3 * least * cost) / 60
            )  # the next call may measure slower steps
            del self.values["stages"]  # the next call measures again, and may use all of its time
            self.before, self.values["seconds"] = -self.clock.now(), 0.0
            self.write()
            where = (
                f"--for {shown(given)}: is enough for {steps} of at least {least} training steps"
            )
            others = f"{spent:.0f} s of checks, {reserve:.0f} s for evaluation and index"
            raise UserError(f"{where} ({cost:.2g} s each, {others}); give at least --for {enough}m")

    def pilots(self) -> str:
        """Return the name of the best pilot.

        The first questions are worth the most, because time may lack for the last.
        """
        best = BASE
        for name in [each for each in (AS_IT_IS, best) if each in self.stages]:
            self.stage(name)
        if "pilots_until" not in self.values:
            spent, num = self.elapsed(), self.values["num_pilots"]
            left = (1 - FINAL_SHARE) * (
                self.values["seconds"] - spent - self.reserve(*self.measured(best))
            )
            self.save(pilots_until=spent + min(left, 1.1 * (num - 1) * self.stages[best]["took"]))
        starts: dict[str, dict[str, Any]] = {"random": {"scratch": True}}
        if self.name == "search":
            captions = {
                f"{best}_{caption}": {"caption": caption} for caption in ("words", "phrases")
            }
            best, half = (
                self.choose("captions", best, captions),
                max(MIN_STEPS, self.stages[best]["steps"] // 2),
            )
            self.stages.setdefault(MASKED, {"size": SIZES[0], "steps": half})
            starts = {"random": {"scratch": True}, "masked_first": {"steps": half}}
            starts = {
                name: changed | {"start": f"pilots/{MASKED}"} for name, changed in starts.items()
            }
        best = self.choose("start", best, starts)
        for size in [size for size in SIZES[1:] if size <= self.values["data"]["side"]][:1]:
            steps = max(
                MIN_STEPS, self.stages[best]["steps"] * SIZES[0] // size
            )  # of about equal time
            best = self.choose(
                "image size", best, {f"{best}_{size}": {"size": size, "steps": steps}}
            )
        return best

    def choose(self, question: str, best: str, changes: Mapping[str, dict[str, Any]]) -> str:
        """Return the best of a pilot and new ones that differ from it.

        They are compared row by row. changes: by the names of the new ones, which are trained if
        the time allows.
        """
        if question not in self.values["choices"]:
            for name, changed in changes.items():
                self.stages.setdefault(name, pilot_of(self.stages[best]) | changed)
            names = [best, *[name for name in changes if self._is_trained(name)]]
            best = max(names, key=lambda name: self.stages[name]["score"])
            rows, others = self.rows(best), [name for name in names if name != best]
            gains = {name: certain(paired(rows, self.rows(name))) for name in others}
            scores = ", ".join(
                f"{name} {self.stages[name]['score']:.3f}" for name in (best, *others)
            )
            by = "; ".join(f"{in_words(gain)} over {name}" for name, gain in gains.items())
            missing = ", ".join(name for name in changes if name not in names)
            line = (
                f"{question}: {best} ({scores}{'; row by row ' * bool(by)}{by})"
                + f"; no time for {missing}" * bool(missing)
            )
            self.decide(
                line, choices=self.values["choices"] | {question: {"best": best, "gains": gains}}
            )
        return self.values["choices"][question]["best"]

    def _is_trained(self, name: str) -> bool:
        """Train a pilot, and what it starts from, unless the final run needs the time.

        A pilot is expected to take as long as the longest before it. One that has begun is
        finished.
        """
        starts = (Path(self.stages[name]["start"]).name, name)
        names = [
            each for each in starts if each in self.stages and not self.stages[each].get("is_done")
        ]
        end = self.elapsed() + len(names) * max(
            stage.get("took", 0.0) for stage in self.stages.values()
        )
        is_late = end > self.values["pilots_until"] and names and not self.folder(names[0]).exists()
        if processes.from_main(lambda: is_late):
            return False
        for each in names:
            self.stage(each)
        return True

    def measured(self, name: str) -> tuple[float, float]:
        """Return the seconds of a step of a pilot, and those of a stage next to its steps."""
        return self.clock.cost(self.config(name)), max(
            stage.get("setup", 0.0) for stage in self.stages.values()
        )

    def finish(self, best: str) -> None:
        """Train final runs with the settings of the best pilot in the rest of the time."""
        if FINAL not in self.stages or self.values["seconds"] > self.values["planned"]:
            cost, setup = self.measured(best)
            reserve = setup + self.reserve(cost, setup)
            left = max(0.0, MARGIN * (self.values["seconds"] - self.elapsed() - reserve))
            new = self.final_runs(best, left, cost, setup)
            if new:
                others = {
                    name: stage for name, stage in self.stages.items() if name != FINAL
                }  # it comes last
                steps, num = f"{new[FINAL]['steps']:,} steps", len(new) - 1
                what = (
                    f"{num} final runs of {steps} each, as {best}, averaged"
                    if num
                    else f"final run: as {best}, {steps}"
                )
                why = f"{shown(left)} at {cost:.3g} s a step, {shown(reserve)} kept for evaluation and index"
                self.decide(f"{what} ({why})", stages=others | new, planned=self.values["seconds"])
        runs = self.stages[FINAL].get("runs", [])
        for number, name in enumerate(runs):
            if number and self._is_late(name, runs[number - 1]):
                stages = {
                    each: stage for each, stage in self.stages.items() if each not in runs[number:]
                }
                stages[FINAL] = stages[FINAL] | {"runs": runs[:number]}
                self.decide(f"no time for {', '.join(runs[number:])}", stages=stages)
                break
            self.stage(name)
        self.stage(FINAL)

    def _is_late(self, name: str, previous: str) -> bool:
        """Return whether more than half of a run would lie after the end of the time.

        One that has begun is finished.
        """
        end = self.elapsed() + self.stages[previous]["took"] / 2
        return processes.from_main(
            lambda: end > self.values["seconds"] and not self.folder(name).exists()
        )

    def final_runs(
        self, best: str, left: float, cost: float, setup: float
    ) -> dict[str, dict[str, Any]]:
        """Return the settings of new final runs, FINAL the last.

        They are empty if the time is too short for one more.

        A single run gets all the time, also a longer one later. Where the time is enough for
        several runs of EPOCHS epochs, they differ by their seeds, and their weights are averaged: a
        longer run would overfit. Only runs that share all of their initial weights have a useful
        average.
        """
        pilot, given = pilot_of(self.stages[best]), self.stages.get(FINAL, {})
        if given and "runs" not in given:
            done = given["steps"] if given.get("is_done") else self.reached(FINAL)
            return {
                FINAL: pilot_of(given) | {"steps": max(given["steps"], done + int(left / cost))}
            }
        before = given.get("runs", [])
        left -= sum(
            setup + self.stages[name]["steps"] * cost
            for name in before
            if not self.stages[name].get("is_done")
        )
        steps = max(
            MIN_STEPS, EPOCHS * self.values["data"]["train"] / self.config(best).train.batch_size
        )
        num = min(MOST_RUNS, int(left / (setup + steps * cost)))
        is_shared = (
            AS_IT_IS in self.stages and pilot["start"] == BUNDLED and not pilot["scratch"]
        )  # also the heads
        if not before and (num < 2 or not is_shared):
            return {FINAL: pilot | {"steps": max(MIN_STEPS, int(left / cost))}}
        if num < 1:
            return {}
        steps = int((left / num - setup) / cost)
        seeds = range(len(before), len(before) + num)
        new = {f"{FINAL} {seed}": pilot | {"steps": steps, "seed": seed} for seed in seeds}
        return new | {FINAL: pilot | {"steps": steps, "runs": [*before, *new]}}

    def reached(self, name: str) -> int:
        """Return the step of a stage's newest checkpoint; 0 without one."""
        folders = checkpoint_folders(self.folder(name))
        return int(folders[-1].name.removeprefix("step_")) if folders else 0

    def stage(self, name: str) -> None:
        """Train a stage and score it, unless that is done."""
        stage = self.stages[name]
        if stage.get("is_done"):
            return
        start, before, config = self.clock.now(), self.reached(name), self.config(name)
        if name == AS_IT_IS:
            done = stage | self.score(name) | {"is_done": True}
            self.decide(
                f"{name}: score {done['score']:.3f} on the validation rows",
                stages=self.stages | {name: done},
            )
            return

        def line() -> str:
            step = max(
                (row["step"] for row in read_log(config.out) if row["kind"] == "train"), default=0
            )
            left = f"about {shown(max(self.values['seconds'] - self.elapsed(), 0))} left"
            return f"{name}: step {step:,} of {config.train.steps:,}, {left} of {shown(self.values['seconds'])}"

        with stop_signals() as stop:
            if "runs" in stage:
                runs = [self.folder(run) for run in stage["runs"]]
                processes.from_main(lambda: average(runs, self.folder(name), replaces=True))
            else:
                with progress_line(line), self.output(config.out.relative_to(self.out)):
                    train(config)
            if stop:  # during the last step, which is no longer interrupted
                raise StoppedError(f"stopped after {name}", code=128 + next(iter(stop)))
        measured, took = self.score(name) if "start" in stage else {}, self.clock.now() - start
        cost, steps = self.clock.cost(config), config.train.steps
        setup = max(0.0, took - (steps - before) * cost)
        measured |= {
            "is_done": True,
            "took": setup + steps * cost,
            "setup": setup,
        }  # also steps before an interruption
        self.save(stages=self.stages | {name: stage | measured})
        if is_main() and name != FINAL and read_best(config.out):  # all that later commands use
            delete_folders(*checkpoint_folders(config.out))

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
        config = self.config(name)
        with self.output(config.out.relative_to(self.out)):
            sources = open_splits(config, self.job.rows).val
            run = load_run(folder_of(self.run(name)), devices.pick_device(self.device))
            found = evaluated(
                run, config.data.val_samples, sources, ablations=False, skip_invalid=True
            )
        rows = dict(found.choice_scores or found.row_scores)
        write_file(config.out / ROWS, json.dumps(rows, indent=1) + "\n")
        return {"score": statistics.fmean(rows.values()), "numbers": to_json(found.numbers)}

    def rows(self, name: str) -> Mapping[str, float]:
        """Return the row scores of a scored stage."""
        return read_json(self.folder(name) / ROWS, dict)


def certain(gain: float) -> tuple[float, float, float]:
    """Return a difference and both ends of its interval."""
    low, high = (gain.low, gain.high) if isinstance(gain, MeasuredValue) else (-1.0, 1.0)
    return float(gain), low, high


def in_words(gain: tuple[float, float, float]) -> str:
    """Return a difference with its interval as text."""
    return f"{gain[0]:+.3f} ({gain[1]:+.3f} to {gain[2]:+.3f})"


def before_and_after(best: str, own: Mapping[str, float], start: Mapping[str, float]) -> str:
    """Return a sentence that compares the best run with the bundled one.

    own, start: their scores by test query, 1 if the first hit is right.
    """
    now, before = (statistics.fmean(rows.values()) for rows in (own, start))
    gain = certain(paired(own, start))
    chance = ", which may be chance" * (gain[1] <= 0 <= gain[2])
    where = f"{best}, on {pluralize(len(own), 'test query', 'test queries')}"
    return f"{where}: R@1 {now:.3f}, {before:.3f} before training: {in_words(gain)}{chance}"


def conclude(learner: Learner) -> str:
    """Evaluate the best run so far on the test rows; return its name.

    Also indexes all images, and writes the report and the commands. Returns "" if no run can be
    used yet.
    """
    stages = learner.stages
    for name in stages:
        is_usable = "start" in stages[name] and (
            learner.reached(name) or read_best(learner.folder(name))
        )
        if is_usable and not stages[name].get("is_done"):
            stages[name] |= learner.score(name)
    final = stages.get(FINAL, {})
    parts = (
        final.get("runs", ()) if final.get("is_done") else ()
    )  # the best of several seeds is best by luck
    scored = {
        name: stage["score"]
        for name, stage in stages.items()
        if "score" in stage and name not in parts
    }
    if not scored:
        return ""
    best = max(scored, key=lambda name: (scored[name], name == FINAL))
    notes = []
    if final.get("is_done") and best != FINAL:
        gain = certain(paired(learner.rows(best), learner.rows(FINAL)))
        chance = ", which may be chance" * (gain[1] <= 0 <= gain[2])
        notes = [
            f"kept: {best}, {in_words(gain)} over the final run on the validation rows{chance}"
        ]
    config, index, both = (
        learner.config(best),
        learner.out / INDEX,
        [best, *[AS_IT_IS] * (AS_IT_IS in scored)],
    )
    with learner.output("."):
        tests = open_sources(learner.test, learner.data, config.input.image_size, learner.job.rows)
        tests = tests or open_splits(config, learner.job.rows).test
        runs = {
            name: load_run(folder_of(learner.run(name)), devices.pick_device(learner.device))
            for name in dict.fromkeys(both)
        }
        measured = {
            name: evaluated(run, sum(map(len, tests)), tests, ablations=False, skip_invalid=True)
            for name, run in runs.items()
        }
        run, found = runs[best], measured[best]
    if AS_IT_IS in measured and best != AS_IT_IS:
        notes.append(before_and_after(best, found.row_scores, measured[AS_IT_IS].row_scores))
    comparison = run.evaluator.comparison(found.numbers)
    learner.values["result"] = {
        "run": best,
        "numbers": to_json(found.numbers),
        "comparison": comparison,
        "notes": notes,
    }
    processes.shutdown()
    if not is_main():
        return best
    with learner.output("."):
        if learner.name == "search":
            if learner.values.get("indexed") != (
                weights := f"{best} {run.step}"
            ):  # an index belongs to one run's weights
                shutil.rmtree(index, ignore_errors=True)
            learner.values["indexed"] = weights
            Eve(run).index(learner.data.train, index, **learner.reading())
    learner.write()
    lines, given = [*learner.values["lines"], *notes], commands(learner)
    write_file(
        learner.out / SCRIPT,
        "\n".join(["#!/bin/sh", "set -e", *(f"# {line}" for line in lines), *given, ""]),
    )
    result = result_of(run, found, learner.test or [HELD_OUT_TEST], {})
    body = draw(
        "run_sections.html", "learned", lines=lines, commands=given, app=app(learner), result=result
    )
    data = config.data if best == AS_IT_IS else None  # the bundled run's own data are not here
    with learner.output("."):
        write_page(
            learner.out / REPORT, run_page(run, [Section("decisions", "Decisions", body)], data)
        )
    return best


def result_lines(learner: Learner) -> list[str]:
    """Return the numbers of the best run so far and what to do with it."""
    result, files = (
        learner.values["result"],
        f"report: {learner.out / REPORT}; commands: {learner.out / SCRIPT}",
    )
    where = f"{result['run']}, on {pluralize(learner.values['data']['test'], 'test row')} that no decision used"
    found = re.sub(
        r"[a-z]\w+", lambda name: meaning(name[0]) or name[0], result["comparison"]
    ).split("; ")
    return [
        f"{where}{' (R@1: the share of searches whose first hit is right)' * (learner.name == 'search')}:",
        *(f"  {line}" for line in found),
        *result["notes"],
        f"{files}; time: {shown(learner.elapsed())}",
        f"open the page: {app(learner)}",
    ]


def commands(learner: Learner) -> list[str]:
    """Return the commands that repeat the stages, evaluation and index."""
    has_config = {name: (learner.folder(name) / "config.json").is_file() for name in learner.stages}
    trained = [
        name
        for name in has_config
        if all(has_config[each] for each in (name, *learner.stages[name].get("runs", ())))
    ]
    run, index = learner.run(learner.values["result"]["run"]), str(learner.out / INDEX)
    given = {
        name: value
        for name, value in learner.reading().items()
        if value != getattr(DataConfig, name)
    }
    reading = [
        part
        for name, value in given.items()
        for part in (f"--{name.replace('_', '-')}", str(value))
    ]
    more = [["eve", "evaluate", learner.job.task, run, "--skip-invalid", "--data"]]
    more[0] += [*learner.test, *reading] if learner.test else [HELD_OUT_TEST]
    more += [["eve", "index", *learner.data.train, "--run", run, "--out", index, *reading]] * (
        learner.name == "search"
    )
    return [*(command(learner, name) for name in trained), *map(shlex.join, more)]


def command(learner: Learner, name: str) -> str:
    """Return the command that repeats a stage."""
    runs = [learner.run(run) for run in learner.stages[name].get("runs", ())]
    return (
        shlex.join(["eve", "average", *runs, "--out", learner.run(name)])
        if runs
        else command_line(learner.config(name))
    )


def app(learner: Learner) -> str:
    """Return the command that opens the page."""
    run = learner.run(learner.values["result"]["run"])  # an index knows its run
    return shlex.join(
        [
            "eve",
            "serve",
            *(["--index", str(learner.out / INDEX)] if learner.name == "search" else [run]),
        ]
    )
