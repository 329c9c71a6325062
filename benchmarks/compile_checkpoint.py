"""Measure time and memory of train.compile and train.checkpoint_activations.

    python benchmarks/compile_checkpoint.py --recipe demo --batch 32

Times forward and backward of a pre-training step. The variants train the same weights on the same rows and take turns within
one process (one thread, processor time), so each round's ratio is taken under the same load. Bytes are the tensors that
autograd keeps from the forward for the backward pass.
"""

import argparse
import statistics
import time
from dataclasses import replace

from eve_vl.utils.runtime import keep_memory, yield_cores

yield_cores()

import torch  # noqa: E402
from step_variants import made_up_batch  # noqa: E402
from timing import machine, spread  # noqa: E402
from torch import Tensor  # noqa: E402

from eve_vl.config import TrainConfig  # noqa: E402
from eve_vl.recipes import get_recipe  # noqa: E402
from eve_vl.run.loading import build_untrained  # noqa: E402
from eve_vl.tasks.task import Sizes  # noqa: E402
from eve_vl.train.processes import (  # noqa: E402
    autocast,
    pick_dtype,
    wrap_blocks,
)

VARIANTS = {
    "plain": {},
    "compile": {"compile": True},
    "checkpoint_activations": {"checkpoint_activations": True},
}


def kept_bytes(task: torch.nn.Module, batch: object, context: torch.autocast) -> int:
    """Return the bytes that a forward pass keeps, each storage once, without weights."""
    weights, kept = {each.untyped_storage().data_ptr() for each in task.parameters()}, {}

    def keep(x: Tensor) -> Tensor:
        if x.untyped_storage().data_ptr() not in weights:
            kept[x.untyped_storage().data_ptr()] = (
                x  # keep a reference, so that its address is not reused
            )
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x), context:
        task(batch)
    return sum(x.untyped_storage().nbytes() for x in kept.values())


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="demo")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    keep_memory()
    torch.set_num_threads(1)
    device = torch.device("cpu")
    config = get_recipe(args.recipe)
    batch = made_up_batch(config, args.batch, "captions")
    print(f"{args.recipe}, batch {args.batch}; {machine()}")
    for dtype in dict.fromkeys((torch.float32, pick_dtype("auto", device))):
        tasks, context = {}, autocast(device, dtype)
        for name, fields in VARIANTS.items():
            torch.manual_seed(0)
            tasks[name] = build_untrained(
                config, Sizes(vocab_size=config.tokenizer.vocab_size)
            ).train()
            wrap_blocks(tasks[name], replace(TrainConfig(), **fields))
        first, times = {}, {name: [] for name in tasks}
        for turn in range(args.rounds + 1):
            for name, task in tasks.items():
                task.zero_grad(set_to_none=True)
                start = time.process_time()
                with context:
                    loss = task(batch).loss
                loss.backward()
                times[name].append(time.process_time() - start)
                if not turn:
                    first[name] = times[name].pop()
        memory = {name: kept_bytes(task, batch, context) for name, task in tasks.items()}
        for name in tasks:
            ratios = [mine / plain for mine, plain in zip(times[name], times["plain"], strict=True)]
            print(
                f"{dtype!s:15} {name:23} time / plain {spread(ratios)}  "
                f"bytes kept / plain {memory[name] / memory['plain']:.2f} ({memory[name] / 2**20:.0f} MiB)  "
                f"first step {first[name] / statistics.median(times[name]):.0f} steps long"
            )


if __name__ == "__main__":
    main()
