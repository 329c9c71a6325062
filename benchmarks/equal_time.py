"""Does pre-training by MLM + MIM pay at equal wall-clock? EVE, its rival MLM + ITC + ITM, and no pre-training at all.

    python benchmarks/equal_time.py --seconds 180 --seeds 0 1 2 --out runs/equal_time

Both objectives get the same time: steps = seconds / (seconds per step), measured first with steps of both interleaved, so
that other work on the machine hits both alike. Then each run is fine-tuned on the three tasks by the demo's recipes, for
all of their steps or a share of them, and evaluated on 1,000 test scenes. Two runs at a time, one thread each. Called again
with the same --out, it goes on.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

from eve_vl.cpu import keep_memory, yield_cores

yield_cores()

import torch  # noqa: E402

from eve_vl.config import Config  # noqa: E402
from eve_vl.demo import TASKS, work  # noqa: E402
from eve_vl.recipes import get_finetune_recipe, get_recipe  # noqa: E402

ARMS = {"MLM + MIM": "demo", "MLM + ITC + ITM": "demo_rival"}
NONE = "no pre-training"
METRICS = {"vqa": ("vqa_acc",), "nlvr2": ("nlvr2_acc",), "retrieval": ("tr1", "ir1")}


def seconds_per_step(configs: dict[str, Config], rounds: int = 8) -> dict[str, float]:
    """Return the median time of a training step of each config, steps interleaved."""
    from eve_vl.data.loader import open_sources, train_loader
    from eve_vl.loading import build_task
    from eve_vl.seeds import seed_everything
    from eve_vl.train.trainer import Trainer
    from eve_vl.training import train_tokenizer

    torch.set_num_threads(1)
    trainers = {}
    for name, config in configs.items():
        seed_everything(0)
        sources = open_sources(config.data.train, config.data, config.input.image_size)
        tokenizer = train_tokenizer(config.data.train, config.data, config.tokenizer.vocab_size)
        task = build_task(config, tokenizer)
        dataset = task.dataset(sources, config, tokenizer, training=True)
        batches = iter(train_loader(dataset, consumed=0, rank=0, world=1))
        trainers[name] = Trainer(config.train, config.out, task, device=torch.device("cpu"), texts={}), batches
    times = defaultdict(list)
    for turn in range(rounds + 2):
        for name, (trainer, batches) in trainers.items():
            batch = next(batches)
            start = time.perf_counter()
            trainer.train_step([batch])
            if turn >= 2:  # the first are slower
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(found) for name, found in times.items()}


def plan(out: Path, steps: dict[str, int], seeds: list[int], share: float) -> list[list[Config]]:
    """Return the runs in two stages: pre-training, then fine-tuning."""
    pretraining, finetuning = [], []
    for seed in seeds:
        for arm, recipe in [*ARMS.items(), (NONE, "demo")]:
            folder = out / arm.replace(" ", "") / f"seed_{seed}"
            config = get_recipe(recipe)
            if arm == NONE:
                init = out / next(iter(ARMS)).replace(" ", "") / f"seed_{seed}" / "pretrain"
            else:
                init = folder / "pretrain"
                train = replace(config.train, seed=seed, threads=1, steps=steps[arm], val_every=10**6, save_every=10**6)
                pretraining.append(replace(config, out=init, train=train))
            for task in TASKS:
                tuned = get_finetune_recipe(f"demo_{task}", config)
                tuned_steps = round(share * tuned.train.steps)
                train = replace(tuned.train, seed=seed, threads=1, steps=tuned_steps, val_every=10**6, save_every=10**6)
                finetuning.append(replace(tuned, init=init, scratch=arm == NONE, out=folder / task, train=train))
    return [pretraining, finetuning]


def table(out: Path, steps: dict[str, int], seeds: list[int]) -> dict[str, dict[str, list[float]]]:
    """Return each arm's numbers, one per seed."""
    found: dict[str, dict[str, list[float]]] = {}
    for arm in [*ARMS, NONE]:
        found[arm] = {}
        for task, names in METRICS.items():
            files = [out / arm.replace(" ", "") / f"seed_{seed}" / task / "test.json" for seed in seeds]
            for name in names:
                found[arm][name] = [json.loads(file.read_text())[name] for file in files]
    return found


def main() -> None:
    """Run what is not done yet and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=180, help="pre-training time of each run, in seconds of one core")
    parser.add_argument("--share", type=float, default=1.0, help="of the steps of the demo's fine-tuning")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/equal_time"))
    args = parser.parse_args()
    keep_memory()
    args.out.mkdir(parents=True, exist_ok=True)
    steps_file = args.out / "steps.json"
    if not steps_file.is_file():
        with contextlib.redirect_stdout(sys.stderr):
            seconds = seconds_per_step({arm: get_recipe(recipe) for arm, recipe in ARMS.items()})
        steps_file.write_text(json.dumps({"seconds_per_step": seconds, "seconds": args.seconds, "share": args.share}, indent=1))
    known = json.loads(steps_file.read_text())
    if (known["seconds"], known["share"]) != (args.seconds, args.share):
        parser.error(f"{args.out} was begun with --seconds {known['seconds']:g} --share {known['share']:g}")
    steps = {arm: round(known["seconds"] / seconds) for arm, seconds in known["seconds_per_step"].items()}
    for stage in plan(args.out, steps, args.seeds, args.share):
        with ProcessPoolExecutor(min(2, os.cpu_count() or 1), mp_context=multiprocessing.get_context("spawn")) as pool:
            for config, _ in zip(stage, pool.map(partial(work, splits=("test",)), stage), strict=True):
                print(f"done: {config.out}", flush=True)
    found = table(args.out, steps, args.seeds)
    print(f"{known['seconds']:.0f} s of pre-training on one core: steps {steps}; {args.share:g} of the demo's fine-tuning")
    print(f"mean (min–max) over seeds {args.seeds}")
    names = list(next(iter(found.values())))
    print(f"{'':18}" + "".join(f"{name:>24}" for name in names))
    for arm, numbers in found.items():
        cells = (f"{statistics.mean(v):.3f} ({min(v):.3f}–{max(v):.3f})" for v in numbers.values())
        print(f"{arm:18}" + "".join(f"{cell:>24}" for cell in cells))
    (args.out / "table.json").write_text(json.dumps({"steps": steps, "share": args.share, "numbers": found}, indent=1))


if __name__ == "__main__":
    main()
