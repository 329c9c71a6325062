"""Measure `Eve.load` against reading the weights' file and drawing initial values.

    python benchmarks/run_loading.py --recipe base        # 2 GB on the disk, in a temporary folder

Each round reads the file as bytes, then loads the run. The first round fills the system's cache and does not count.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from timing import spread

from eve_vl.config import config_to_json
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.eve import Eve
from eve_vl.recipes import get_recipe
from eve_vl.run.loading import build_task
from eve_vl.train.checkpoint import write_tensors


def write_run(folder: Path, recipe: str) -> int:
    """Write a run of zeros and return the bytes of its weights."""
    config, tokenizer = get_recipe(recipe), Tokenizer.train(["an image and its words"] * 3, 300)
    with torch.device("meta"):
        task = build_task(config, tokenizer)
    tensors = {name: torch.zeros(tensor.shape) for name, tensor in task.state_dict().items()}
    write_tensors(folder / "model.safetensors", tensors)
    for name, text in {
        "config.json": config_to_json(config),
        "tokenizer.json": tokenizer.to_json(),
        "state.json": '{"step": 0}',
    }.items():
        (folder / name).write_text(text)
    return (folder / "model.safetensors").stat().st_size


def seconds(action: Callable[[], object]) -> float:
    """Return the seconds of a call."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="base")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--draw", action="store_true", help="also draw initial values, once (minutes for base)"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = write_run(folder, args.recipe)
        weights, ratios, read = folder / "model.safetensors", [], 0.0
        for _ in range(args.rounds + 1):
            read = seconds(weights.read_bytes)
            ratios.append(seconds(lambda: Eve.load(folder, device="cpu")) / read)
        print(
            f"{args.recipe}: {size / 2**30:.2f} GiB; Eve.load / reading the file, {args.rounds} rounds:"
        )
        print(f"  {spread(ratios[1:])}")
        if args.draw:
            drawn = seconds(
                lambda: build_task(
                    get_recipe(args.recipe), Tokenizer.load(folder / "tokenizer.json")
                )
            )
            print(f"  drawing initial values / reading the file: {drawn / read:.1f}")


if __name__ == "__main__":
    main()
