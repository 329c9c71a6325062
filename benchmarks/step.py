"""One whole training step of a recipe on made-up pairs: peak memory, seconds, and where the time goes.

python benchmarks/step.py base --batch 8 --json step.json
"""

import argparse
import dataclasses
import json
import platform
import resource
import time
from pathlib import Path

from eve_vl.cli import keep_memory, yield_cores

keep_memory()
yield_cores()

import numpy as np  # noqa: E402
import torch  # noqa: E402

from eve_vl.config import Config  # noqa: E402
from eve_vl.data.batch import PairBatch, Sample, collate  # noqa: E402
from eve_vl.data.masking import generator, mask_patches, mask_tokens  # noqa: E402
from eve_vl.inspect import inspect_config  # noqa: E402
from eve_vl.recipes import get_recipe  # noqa: E402
from eve_vl.tasks.masked_signal import MaskedSignal  # noqa: E402
from eve_vl.train.optim import build_optimizer  # noqa: E402
from eve_vl.train.trainer import autocast, pick_device, pick_dtype  # noqa: E402


def made_up_batch(config: Config, batch_size: int) -> PairBatch:
    """Random pictures with captions of full length."""
    model, task = config.model, config.task
    samples = []
    for row in range(batch_size):
        rng = generator(row)
        is_special_T = np.arange(model.text_length) == 0
        keep_K, hidden_M = mask_patches(model.num_patches, task.image_mask_ratio, rng)
        samples.append(
            Sample(
                image=torch.from_numpy(rng.integers(0, 256, (3, model.image_size, model.image_size), dtype=np.uint8)),
                ids_T=rng.integers(3, config.tokenizer.vocab_size, model.text_length),
                is_masked_T=mask_tokens(is_special_T, task.text_mask_ratio, rng),
                keep_K=keep_K,
                hidden_M=hidden_M,
                where=f"random[{row}]",
            )
        )
    return collate(samples, pad_id=0)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    config = get_recipe(args.recipe)
    device = pick_device("auto")
    dtype = pick_dtype(args.dtype, device)
    train = dataclasses.replace(config.train, steps=100, batch_size=args.batch)
    task = MaskedSignal(config, vocab_size=config.tokenizer.vocab_size, mask_id=2).to(device).train()
    optimizer = build_optimizer(task.named_parameters(), train)
    batch = made_up_batch(config, args.batch).to(device)
    seconds, losses = [], []
    for _ in range(args.steps):
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with autocast(device, dtype):
            loss = task(batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(task.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - start)
    peak = (
        torch.cuda.max_memory_allocated()
        if device.type == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    inspection = inspect_config(config)
    result = {
        "recipe": args.recipe,
        "batch": args.batch,
        "dtype": str(dtype),
        "device": str(device),
        "threads": torch.get_num_threads(),
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "parameters": sum(inspection.parameters.values()),
        "peak_memory_gib": peak / 2**30,
        "seconds_per_step": seconds,
        "gflop_per_second": inspection.flops_per_step * args.batch / min(seconds) / 1e9,
        "losses": losses,
    }
    for name, value in result.items():
        print(f"{name:20} {value}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
