"""Arms of a comparison: runs whose configs differ in the seed only."""

import itertools
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from eve_vl.config import Config, flat, to_dict
from eve_vl.metrics.intervals import MeasuredValue
from eve_vl.metrics.seeds import seeds_difference
from eve_vl.run.loading import read_config
from eve_vl.run.results import RowScores, row_difference
from eve_vl.run.start_folder import start_folder
from eve_vl.train.checkpoint_folders import chosen_checkpoint
from eve_vl.utils.errors import UserError


@dataclass(frozen=True)
class Arm:
    """Runs of one config, each with its own seed."""

    name: str
    runs: tuple[str, ...]


@dataclass(frozen=True)
class ArmDifference:
    """The mean difference of the scores of two arms on the rows that all their runs share."""

    better: Arm
    worse: Arm
    difference: MeasuredValue

    @property
    def is_of_seeds(self) -> bool:
        """Whether an arm has several seeds, so that the interval holds for new seeds."""
        return len(self.better.runs) + len(self.worse.runs) > 2


def group_by_arm(configs: Mapping[str, Config]) -> list[Arm]:
    """Return the arms of runs, in the order of their first runs.

    configs: by name of the run. Runs of one arm differ in --train.seed and their folder only, and
    so do the runs that they start from. A repeated seed is no further evidence, so it starts
    another arm.
    """
    runs_of_arm: dict[tuple[str, int], list[str]] = {}
    times_seen: Counter[tuple[str, int]] = Counter()
    for run, config in configs.items():
        settings = settings_without_seed(config)
        repetition = times_seen[settings, config.train.seed]
        times_seen[settings, config.train.seed] += 1
        runs_of_arm.setdefault((settings, repetition), []).append(run)

    groups = [tuple(runs) for runs in runs_of_arm.values()]
    prefixes = Counter(_common_name(runs) for runs in groups)
    arms = []
    for runs in groups:
        name = _common_name(runs)
        if not name or prefixes[name] > 1:
            name = f"{runs[0]} and {len(runs) - 1} more"
        if len(runs) == 1:
            name = runs[0]
        arms.append(Arm(name, runs))
    return arms


def settings_without_seed(config: Config, num_starts: int = 10) -> str:
    """Return all settings of a run but seed and folder, as JSON.

    The run that it starts from counts by its settings, too, up to num_starts runs back; by its name
    if it is gone.
    """
    settings = flat(to_dict(config))
    del settings["out"]
    del settings["train.seed"]
    if config.init is not None and num_starts:
        try:
            start = read_config(chosen_checkpoint(start_folder(config.init)))
            settings["init"] = settings_without_seed(start, num_starts - 1)
        except UserError:
            settings["init"] = str(config.init)
    return json.dumps(settings, sort_keys=True)


def arm_differences(
    arms: Sequence[Arm], scores_of_runs: Mapping[str, RowScores]
) -> list[ArmDifference]:
    """Return the differences of all pairs of arms that were measured on common rows."""
    differences = []
    for a, b in itertools.combinations(arms, 2):
        difference = _difference(a, b, scores_of_runs)
        if not isinstance(difference, MeasuredValue):
            continue
        if difference >= 0:
            differences.append(ArmDifference(a, b, difference))
        else:
            reverse = _difference(b, a, scores_of_runs)
            assert isinstance(reverse, MeasuredValue)
            differences.append(ArmDifference(b, a, reverse))
    return differences


def _difference(a: Arm, b: Arm, scores_of_runs: Mapping[str, RowScores]) -> float | None:
    """Return the mean score of an arm minus that of another, None without common rows."""
    scores_a = [scores_of_runs[run] for run in a.runs]
    scores_b = [scores_of_runs[run] for run in b.runs]
    if len(scores_a) == len(scores_b) == 1:
        return row_difference(scores_a[0], scores_b[0])
    if len({(scores.data, scores.scored) for scores in scores_a + scores_b}) > 1:
        return None
    return seeds_difference(
        [scores.rows for scores in scores_a], [scores.rows for scores in scores_b]
    )


def _common_name(runs: Sequence[str]) -> str:
    """Return what the names of an arm's runs have in common, such as base of base_s0, base_s1."""
    if len(runs) == 1:
        return runs[0]
    matching_letters = itertools.takewhile(_are_equal, zip(*runs, strict=False))
    prefix = "".join(letters[0] for letters in matching_letters)
    return re.sub(r"[-_./ ]+(seed|s)?[-_./ ]*\d*$", "", prefix)


def _are_equal(letters: Sequence[str]) -> bool:
    return len(set(letters)) == 1
