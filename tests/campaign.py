"""A fault campaign: damaged files of every form go through the real entry points.

    PYTHONPATH=. python tests/campaign.py --inputs 20000 --seed 1 --processes 2
    PYTHONPATH=. python tests/campaign.py --seed 1 --case "tar:17"  # one input, with traceback

An input may succeed or end in a UserError that is one printable line and names a file. Escapes: any
other exception, a death or a hang of the process, too much memory, files left behind. The same seed
makes the same inputs.
"""

import argparse
import multiprocessing
import re
import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from random import Random

import torch

from helpers.campaign_cases import PACKAGE, Case, Outcome, lay_out, run_case
from helpers.campaign_data import data_readers
from helpers.campaign_reader import Reader
from helpers.campaign_runs import make_base, run_readers
from helpers.campaign_weights import weight_readers
from helpers.campaign_workers import CampaignOptions, run_all

SAVED_PER_GROUP = 3  # escapes whose inputs are kept


def plan(readers: dict[str, Reader], num_inputs: int) -> list[Case]:
    """Return the inputs: of each reader by its weight, mixed."""
    total = sum(reader.weight for reader in readers.values())
    cases = []
    for name, reader in readers.items():
        count = max(1, round(num_inputs * reader.weight / total))
        cases += [(name, number) for number in range(count)]
    Random(0).shuffle(cases)
    return cases


def save_escape(outcome: Outcome, group: str, options: CampaignOptions) -> None:
    """Save the input of an escape, with what to run to see it again."""
    name, number = outcome.case
    folder = options.out / "escapes" / re.sub(r"\W+", "_", f"{name}_{number}")
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "case").mkdir(parents=True)
    damage = lay_out(options.readers[name], outcome.case, options.seed, folder / "case")
    command = (
        f"PYTHONPATH=. python tests/campaign.py --seed {options.seed} --out {options.out}"
        f' --case "{name}:{number}"'
    )
    text = f"{group}\n{damage}\n{command}\n\n{outcome.escapes[group]}\n"
    (folder / "why.txt").write_text(text, errors="backslashreplace")


def summarize(outcomes: Sequence[Outcome], seconds: float) -> str:
    """Return the table by reader and the escapes by group."""
    lines = [*reader_table(outcomes), "", *escape_table(outcomes)]
    num_escaped = sum(bool(outcome.escapes) for outcome in outcomes)
    groups = [group for outcome in outcomes for group in outcome.escapes]
    num_hangs = sum(group.startswith("hang") for group in groups)
    peak = max((outcome.peak for outcome in outcomes), default=0) / 2**20
    lines.append("")
    lines.append(
        f"{len(outcomes)} inputs in {seconds:.0f} s: {num_escaped} escaped, {num_hangs} hangs,"
        f" largest peak {peak:.0f} MiB; {PACKAGE}"
    )
    return "\n".join(lines)


def reader_table(outcomes: Sequence[Outcome]) -> list[str]:
    """Return a line for each reader, below a header."""
    outcomes_by_reader: defaultdict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        outcomes_by_reader[outcome.case[0]].append(outcome)
    lines = [
        f"{'reader':18}{'inputs':>8}{'succeeded':>11}{'refused':>9}{'escaped':>9}"
        f"{'ms each':>9}{'peak MiB':>10}"
    ]
    for name, rows in sorted(outcomes_by_reader.items()):
        succeeded = sum(row.succeeded for row in rows)
        refused = sum(row.refused for row in rows)
        escaped = sum(bool(row.escapes) for row in rows)
        milliseconds = sum(round(1000 * row.seconds) for row in rows) / len(rows)
        peak = max(row.peak for row in rows) / 2**20
        lines.append(
            f"{name:18}{len(rows):8}{succeeded:11}{refused:9}{escaped:9}"
            f"{milliseconds:9.0f}{peak:10.0f}"
        )
    return lines


def escape_table(outcomes: Sequence[Outcome]) -> list[str]:
    """Return a line for each group of escapes, the largest first, below a header."""
    cases_by_group: defaultdict[str, list[str]] = defaultdict(list)
    for outcome in outcomes:
        name, number = outcome.case
        for group in outcome.escapes:
            cases_by_group[group].append(f"{name}:{number}")
    lines = [f"{len(cases_by_group)} groups of escapes:"]
    for group, cases in sorted(cases_by_group.items(), key=lambda item: -len(item[1])):
        examples = "; ".join(cases[:SAVED_PER_GROUP])
        lines.append(f"{len(cases):6}  {group}   ({examples})")
    return lines


def run_campaign(cases: Sequence[Case], options: CampaignOptions) -> bool:
    """Run all inputs, save escapes and the summary; return whether any input escaped."""
    summary_path = options.out / "summary.txt"
    start = time.perf_counter()
    outcomes = []
    count_by_group = Counter[str]()
    for outcome in run_all(cases, options):
        outcomes.append(outcome)
        for group in outcome.escapes:
            count_by_group[group] += 1
            if count_by_group[group] <= SAVED_PER_GROUP:
                save_escape(outcome, group, options)
        if len(outcomes) % 200 == 0:
            seconds = time.perf_counter() - start
            progress = f"{len(outcomes)} inputs, {len(count_by_group)} groups, {seconds:.0f} s"
            print(progress, flush=True)
            summary = summarize(outcomes, seconds)
            summary_path.write_text(summary, errors="backslashreplace")
    summary = summarize(outcomes, time.perf_counter() - start)
    summary_path.write_text(summary, errors="backslashreplace")
    print(summary.encode("utf-8", "backslashreplace").decode())
    return bool(count_by_group)


def run_one(text: str, options: CampaignOptions) -> bool:
    """Run one input again and print its escapes; return whether there are any."""
    name, _, number = text.rpartition(":")
    work = options.out / "work-case"
    case = (name, int(number))
    outcome = run_case(options.readers[name], case, options.seed, work, options.memory)
    print(*(f"{group}\n{detail}" for group, detail in outcome.escapes.items()), sep="\n\n")
    print(f"input: {work / 'case'}")
    return bool(outcome.escapes)


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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", default=[], help="readers whose names begin so")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--out", type=Path, help="folder to work in; default: a new temporary one")
    parser.add_argument("--timeout", type=float, default=10, help="seconds that one input may take")
    memory_help = "MiB that one input may need, beside the 350 of an idle process"
    parser.add_argument("--memory", type=int, default=700, help=memory_help)
    parser.add_argument("--case", help="READER:NUMBER, to see one input again")
    flags = parser.parse_args()
    out = flags.out or Path(tempfile.mkdtemp(prefix="eve_campaign_"))
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
        return run_one(flags.case, options)
    prefixes = tuple(flags.only or [""])
    chosen = {name: reader for name, reader in readers.items() if name.startswith(prefixes)}
    return run_campaign(plan(chosen, flags.inputs), options)


if __name__ == "__main__":
    sys.exit(main())
