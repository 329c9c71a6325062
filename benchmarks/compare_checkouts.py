"""Compare the speed of training steps between two checkouts of the code.

    git worktree add ../before main
    python benchmarks/compare_checkouts.py ../before . --recipes demo demo_retrieval icons_search --data ../shared/data

Each checkout runs in its own process with one thread, on the same batches of the recipe, from random weights. They take turns,
so each ratio is taken under the same load. Times are processor time, with and without clipping and the optimiser.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

WARM_UP = 4  # steps


def serve(recipe: str, data: Path, dtype: str, num_batches: int) -> None:
    """Read step counts from stdin, run them and print their seconds."""
    from eve_vl.utils.runtime import keep_memory, yield_cores

    yield_cores()
    import torch
    from torch import nn

    from eve_vl.config import Config
    from eve_vl.data.loader import train_loader
    from eve_vl.data.opening import open_train_and_val
    from eve_vl.recipes import get_recipe, pretrain
    from eve_vl.run.loading import build_task
    from eve_vl.run.training import obtain_tokenizer
    from eve_vl.tasks import task_class
    from eve_vl.train.optim import build_optimizer
    from eve_vl.train.processes import autocast, pick_dtype
    from eve_vl.utils.runtime import seed_everything

    keep_memory()
    torch.set_num_threads(1)
    config: Config
    if hasattr(pretrain, recipe):
        config = get_recipe(recipe)
    else:
        from eve_vl.recipes import finetune

        start = recipe.partition("_")[0]
        config = getattr(finetune, recipe)(getattr(pretrain, start)())
        config = replace(config, init=None, train=replace(config.train, head_lr_multiplier=1.0))

    def of(specs):
        return tuple(spec if spec.startswith("scenes:") else str(data / spec) for spec in specs)

    sections = replace(
        config.data, train=of(config.data.train), val=of(config.data.val), num_workers=0
    )
    config = replace(config, out=Path("no-run"), data=sections)
    kind = task_class(type(config.task))
    sources, _ = open_train_and_val(config, kind.dataset.kind_of(config))
    tokenizer = obtain_tokenizer(config, sources)
    prepared = kind.prepare(config, sources, None)
    seed_everything(0)
    device = torch.device("cpu")
    task = build_task(config, tokenizer, prepared.labels).train()
    loader = train_loader(
        kind.dataset(prepared.sources, config, tokenizer, training=True),
        consumed=0,
        rank=0,
        world=1,
    )
    batches: list[Any] = list(islice(loader, num_batches))
    number = pick_dtype("auto", device) if dtype == "auto" else getattr(torch, dtype)
    optimizer = build_optimizer(task.named_parameters(), config.train, products=number)
    taken = 0
    print(
        json.dumps(
            {
                "padding": statistics.mean(
                    float(batch.is_padding_BT.float().mean()) for batch in batches
                )
            }
        ),
        flush=True,
    )
    for line in sys.stdin:
        passes = whole = 0.0
        for _ in range(int(line)):
            (batch,) = task.before_step([batches[taken % num_batches]])
            taken += 1
            optimizer.zero_grad(set_to_none=True)
            start = time.process_time()
            with autocast(device, number):
                loss = task(batch).loss
            loss.backward()
            passes += time.process_time() - start
            nn.utils.clip_grad_norm_(task.parameters(), 1.0)
            optimizer.step()
            whole += time.process_time() - start
        print(json.dumps({"passes": passes, "whole": whole}), flush=True)


class Checkout:
    """A process that runs steps with the code of one checkout."""

    def __init__(self, tree: Path, recipe: str, args: argparse.Namespace):
        environment = os.environ | {
            "PYTHONPATH": str(tree.resolve()),
            "OMP_NUM_THREADS": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        command = [
            sys.executable,
            __file__,
            "--serve",
            recipe,
            "--data",
            str(args.data),
            "--dtype",
            args.dtype,
        ]
        command += ["--batches", str(args.batches)]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env=environment, **pipes)
        self.about = self.answer()
        self.steps(WARM_UP)

    def answer(self) -> dict[str, float]:
        """Return the next JSON line; skip other lines."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        sys.exit("a checkout's process ended")

    def steps(self, count: int) -> dict[str, float]:
        """Return the seconds of N steps."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        return self.answer()


def ratios(rounds: Sequence[tuple[dict[str, float], dict[str, float]]], part: str) -> str:
    """Return median, least and largest of the first checkout's time over the second's."""
    found = [before[part] / after[part] for before, after in rounds]
    return f"{statistics.median(found):.2f} ({min(found):.2f}–{max(found):.2f})"


def main() -> None:
    """Print the time of the first checkout over the second."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkouts", type=Path, nargs="*", metavar="BEFORE AFTER")
    parser.add_argument("--recipes", nargs="+", default=["demo"])
    parser.add_argument("--data", type=Path, default=Path(), help="folder of the recipes' files")
    parser.add_argument("--dtype", default="auto", help="like --train.dtype")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=4, help="steps per round")
    parser.add_argument("--batches", type=int, default=24)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve, args.data, args.dtype, args.batches)
        return
    if len(args.checkouts) != 2:
        parser.error("name two trees, BEFORE and AFTER")
    before, after = args.checkouts
    for recipe in args.recipes:
        pair = [Checkout(tree, recipe, args) for tree in (before, after)]
        rounds = [
            (pair[0].steps(args.steps), pair[1].steps(args.steps)) for _ in range(args.rounds)
        ]
        for tree in pair:
            tree.process.communicate()
        padding = f"{pair[0].about['padding']:.2f} of the texts' tokens are padding"
        print(
            f"{recipe:16} before / after {ratios(rounds, 'passes')}, whole step {ratios(rounds, 'whole')}; {padding}",
            flush=True,
        )


if __name__ == "__main__":
    main()
