"""Change one thing in published checkpoints, convert them, and compare with the original libraries.

    PYTHONPATH=. python tests/mutated_weights.py --mutations 100 --seed 0 --only clip

`eve convert` may refuse a changed checkpoint in one line, which leaves nothing behind. Else the run
must have the features that the original library, or a slow forward pass, computes from the same
files; where that refuses them, those of the unchanged files. open_clip is left out where the
package is missing.
"""

import argparse
import importlib.util
import shutil
import sys
import time
import traceback
from collections import Counter, defaultdict
from pathlib import Path
from random import Random

import torch

import eve_vl
from eve_vl.cli.main import dispatch as eve_command
from eve_vl.utils.errors import UserError
from helpers.campaign_console import campaign_parser, empty_folder, table_of
from helpers.campaign_outcomes import outcome_alone
from helpers.weight_families import Features, WeightFamily, copy_files, families
from helpers.weight_mutations import mutate

OUTCOMES = (
    "refused",
    "equal",
    "harmless",
    "OTHER",
    "ALONE",
    "left-over",
    "traceback",
    "death",
    "hang",
)
"""harmless: only the original library refuses, and the features are those of the unchanged files.
OTHER: other features than the original library's. ALONE: other features than those of the unchanged
files, which the original library refuses."""
FINE = OUTCOMES[:3]


def outcome_of(
    family: WeightFamily,
    folder: Path,
    run: Path,
    unchanged: Features | None,
    timeout: float,
) -> tuple[str, str]:
    """Convert and compare in a process of its own; return the outcome and its details."""

    def compare_alone() -> tuple[str, str]:
        try:
            return compare(family, folder, run, unchanged)
        except BaseException as error:
            return "traceback", place_of(error)

    outcome = outcome_alone(compare_alone, timeout)
    if outcome[0] == "refused" and list(run.parent.glob(f"*{run.name}*")):
        outcome = ("left-over", outcome[1])
    return outcome


def compare(
    family: WeightFamily,
    folder: Path,
    run: Path,
    unchanged: Features | None,
) -> tuple[str, str]:
    """Return what becomes of a changed checkpoint. unchanged: features without the change."""
    try:
        eve_command(family.command(folder, run))
    except UserError as error:
        return "refused", str(error)
    features = family.features(run)
    try:
        expected = family.reference(folder)
    except Exception as error:
        difference = largest_difference(features, unchanged or {})
        outcome = "ALONE" if difference > family.tolerance else "harmless"
        return outcome, f"by {difference:.2g}; {place_of(error)}"
    difference = largest_difference(features, expected)
    return "OTHER" if difference > family.tolerance else "equal", f"by {difference:.2g}"


def place_of(error: BaseException) -> str:
    """Return an error with the last line of code of the package or of a library."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    reason = str(error).partition("\n")[0][:200]
    return f"{type(error).__name__}: {reason} ({Path(frame.filename).name}:{frame.lineno})"


def largest_difference(features: Features, expected: Features) -> float:
    """Return the largest difference of a value; infinite for NaN and other shapes."""
    if features.keys() != expected.keys():
        return float("inf")
    worst = 0.0
    for name, tensor in features.items():
        if tensor.shape != expected[name].shape:
            return float("inf")
        difference = (tensor - expected[name]).abs().max().item()
        worst = max(worst, float("inf") if difference != difference else difference)
    return worst


def run_family(
    name: str,
    family: WeightFamily,
    flags: argparse.Namespace,
    out: Path,
) -> Counter[str]:
    """Mutate a family's checkpoint again and again; return the outcomes, and print the faults."""
    original = out / name / "original"
    original.parent.mkdir()
    family.make(original)
    run = out / name / "results" / "run"
    outcome = outcome_of(family, original, run, None, flags.timeout)
    if outcome[0] != "equal":
        raise RuntimeError(f"{name}: unchanged, yet {outcome}")
    unchanged = family.features(run)

    counts: Counter[str] = Counter()
    for number in range(flags.mutations):
        rng = Random(f"{flags.seed}/{name}/{number}")
        copy = out / name / "changed"
        copy_files(original, copy)
        change = mutate(rng, copy)
        shutil.rmtree(run.parent)
        run.parent.mkdir()
        outcome, detail = outcome_of(family, copy, run, unchanged, flags.timeout)
        counts[outcome] += 1
        if outcome not in FINE or flags.verbose:
            print(f"{name} {number}: {change}: {outcome} {detail}", flush=True)
    return counts


def main() -> int:
    """Mutate weights; return the exit status."""
    parser = campaign_parser(__doc__)
    parser.add_argument(
        "--mutations",
        type=int,
        default=100,
        help="of each family",
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        help="families",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=120,
        help="seconds of one mutation",
    )
    parser.add_argument("--verbose", action="store_true", help="print all outcomes")
    flags = parser.parse_args()
    out = empty_folder(parser, flags.out)
    print(f"works in {out}", flush=True)
    torch.set_num_threads(1)  # threads would not survive a fork
    start = time.perf_counter()
    table: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for name, family in families().items():
        if flags.only and name not in flags.only:
            continue
        if name == "open_clip" and importlib.util.find_spec(name) is None:
            print("open_clip: not installed, left out")
            continue
        table[name] = run_family(name, family, flags, out)
    seconds = time.perf_counter() - start
    print(f"\n{table_of(table, OUTCOMES)}\n{seconds:.0f} s; {eve_vl.__file__}")
    return any(set(counts) - set(FINE) for counts in table.values())


if __name__ == "__main__":
    sys.exit(main())
