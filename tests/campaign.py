"""A fault campaign: damaged files of every form go through the real entry points.

    PYTHONPATH=. python tests/campaign.py --inputs 20000 --seed 1 --processes 2
    PYTHONPATH=. python tests/campaign.py --seed 1 --case "tar:17"  # one input, with traceback

An input may succeed or end in a UserError that is one printable line and names a file. Escapes: any
other exception, a death or a hang of the process, too much memory, files left behind. The same seed
makes the same inputs.
"""

import multiprocessing
import shutil
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from random import Random

import torch

from helpers.campaign_cases import PACKAGE, Case, Outcome, run_case
from helpers.campaign_console import campaign_parser, table_of, work_folder
from helpers.campaign_data import data_readers
from helpers.campaign_reader import Reader
from helpers.campaign_runs import make_base, run_readers
from helpers.campaign_weights import weight_readers
from helpers.campaign_workers import CampaignOptions, run_all

COLUMNS = ("inputs", "succeeded", "refused", "escaped", "ms", "peak MiB")


def plan(readers: dict[str, Reader], num_inputs: int) -> list[Case]:
    """Return the inputs: of each reader by its weight, mixed."""
    total = sum(reader.weight for reader in readers.values())
    cases = []
    for name, reader in readers.items():
        count = max(1, round(num_inputs * reader.weight / total))
        cases += [Case(name, number) for number in range(count)]
    Random(0).shuffle(cases)
    return cases


def counts_by_reader(outcomes: Sequence[Outcome]) -> dict[str, Counter[str]]:
    """Return the numbers of the table, by name of reader and column."""
    table: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for outcome in outcomes:
        counts = table[outcome.case.reader]
        counts["inputs"] += 1
        counts["succeeded"] += outcome.succeeded
        counts["refused"] += outcome.refused
        counts["escaped"] += bool(outcome.escapes)
        counts["ms"] += round(1000 * outcome.seconds)
        counts["peak MiB"] = max(counts["peak MiB"], outcome.peak // 2**20)
    return table


def describe_escapes(outcomes: Sequence[Outcome]) -> str:
    """Return a paragraph for each group of escapes, the largest first."""
    outcomes_by_group: defaultdict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        for group in outcome.escapes:
            outcomes_by_group[group].append(outcome)
    groups = sorted(outcomes_by_group, key=lambda group: -len(outcomes_by_group[group]))
    paragraphs = [f"{len(groups)} groups of escapes:"]
    for group in groups:
        escaped = outcomes_by_group[group]
        examples = "; ".join(str(outcome.case) for outcome in escaped[:3])
        detail = escaped[0].escapes[group]
        paragraphs.append(f"{len(escaped)} × {group}   ({examples})\n{detail}")
    return "\n\n".join(paragraphs)


def run_campaign(cases: Sequence[Case], options: CampaignOptions) -> int:
    """Run all inputs and print what became of them; return the number that escaped."""
    start = time.perf_counter()
    outcomes: list[Outcome] = []
    for outcome in run_all(cases, options):
        outcomes.append(outcome)
        if len(outcomes) % 200 == 0:
            seconds = time.perf_counter() - start
            print(f"{len(outcomes)} inputs, {seconds:.0f} s", flush=True)
    seconds = time.perf_counter() - start
    num_escaped = sum(bool(outcome.escapes) for outcome in outcomes)
    escapes = describe_escapes(outcomes)
    print(table_of(counts_by_reader(outcomes), COLUMNS))
    print(escapes.encode("utf-8", "backslashreplace").decode())
    print(f"{len(outcomes)} inputs in {seconds:.0f} s: {num_escaped} escaped; {PACKAGE}")
    return num_escaped


def run_one(case: Case, options: CampaignOptions) -> int:
    """Run one input again and print its escapes; return their number."""
    work = options.out / "work-case"
    outcome = run_case(options.readers[case.reader], case, options.seed, work, options.memory)
    print(describe_escapes([outcome]))
    print(f"input: {work / 'case'}")
    return len(outcome.escapes)


def build_base(base: Path) -> None:
    """Make runs and large images in a process of its own, unless they are there."""
    if (base / "big").exists():
        return
    shutil.rmtree(base, ignore_errors=True)
    builder = multiprocessing.get_context("fork").Process(target=make_base, args=(base,))
    builder.start()
    builder.join()


def main() -> int:
    """Run the campaign, or one input of it; return the exit status."""
    parser = campaign_parser(__doc__)
    parser.add_argument("--inputs", type=int, default=1000)
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        help="readers whose names begin so",
    )
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument(
        "--timeout",
        type=float,
        default=10,
        help="seconds that one input may take",
    )
    memory_help = "MiB that one input may need, beside the 350 of an idle process"
    parser.add_argument(
        "--memory",
        type=int,
        default=700,
        help=memory_help,
    )
    parser.add_argument("--case", help="READER:NUMBER, to see one input again")
    flags = parser.parse_args()
    out = work_folder(flags.out)
    print(f"works in {out}", flush=True)
    build_base(out / "base")
    torch.set_num_threads(1)  # threads would not survive the fork
    readers = data_readers(out / "base") | run_readers(out / "base")
    readers |= weight_readers(out / "base")
    options = CampaignOptions(
        readers=readers,
        seed=flags.seed,
        out=out,
        timeout=flags.timeout,
        memory=flags.memory * 2**20,
        processes=flags.processes,
    )
    if flags.case:
        name, _, number = flags.case.rpartition(":")
        return bool(run_one(Case(name, int(number)), options))
    prefixes = tuple(flags.only or [""])
    chosen = {name: reader for name, reader in readers.items() if name.startswith(prefixes)}
    return bool(run_campaign(plan(chosen, flags.inputs), options))


if __name__ == "__main__":
    sys.exit(main())
