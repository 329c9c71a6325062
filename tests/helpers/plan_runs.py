"""What tests/run/test_plan.py runs in one and in two processes: the memory that steps of a small
model add to them."""

import ctypes
import gc
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from eve_vl.config import Config
from eve_vl.data.kinds.captions import ImageText
from eve_vl.recipes.registry import get_recipe
from eve_vl.run.loading import build_untrained
from eve_vl.tasks.task import Sizes
from eve_vl.train import processes
from eve_vl.train.trainer import Trainer
from helpers.process_limits import memory
from helpers.tiny_rows import ListSource, noise
from helpers.tiny_tasks import CPU, TOKENIZER, train_set

MMAP_THRESHOLD = -3  # of mallopt
WORDS = ["red", "blue", "circle", "star", "green", "ring", "square", "left", "of", "one", "two"]
ALONE: dict[str, dict[str, Any]] = {
    "muon, averages": {"optimizer": "muon", "ema_decay": 0.9},
    "recomputed": {"checkpoint_activations": True},
}
TOGETHER: dict[str, dict[str, Any]] = {
    "replicate": {},
    "shard, two micro-batches": {"layout": "shard", "accumulation": 2},
}
TRAIN = {
    "batch_size": 32,
    "optimizer": "adamw",
    "dtype": "float32",
    "device": "cpu",
}


def config_of(**train: Any) -> Config:
    """Return the demo with wider blocks and full texts in float32."""
    config = get_recipe("demo")
    return replace(
        config,
        model=replace(config.model, embed_dim=256, num_heads=4),
        tokenizer=replace(config.tokenizer, vocab_size=TOKENIZER.vocab_size),
        train=replace(config.train, **(TRAIN | train)),
    )


def long_pairs(count: int) -> ListSource[ImageText]:
    rows = []
    for row in range(count):
        caption = " ".join(WORDS[(7 * row + 3 * place) % 11] for place in range(40))
        rows.append(
            ImageText(
                image=noise(row),
                captions=(caption,),
                where=str(row),
            )
        )
    return ListSource(rows)


def batches_of_process(config: Config) -> list[Any]:
    """Return the micro-batches of a step."""
    total = config.train.batch_size
    dataset = train_set(config, total, long_pairs)
    world = processes.world_size()
    parts = torch.arange(total).chunk(world * config.train.accumulation)
    batches = []
    for rows in parts[processes.rank() :: world]:
        batches.append(dataset.collate([dataset[0, 0, row] for row in rows.tolist()]))
    return batches


def added(config: Config, steps: int = 2) -> int:
    """Return the largest resident bytes of a training's steps, over those before its model."""
    batches = batches_of_process(config)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = memory("VmRSS")
    torch.manual_seed(0)
    sizes = Sizes(vocab_size=TOKENIZER.vocab_size, mask_id=TOKENIZER.mask_id)
    trainer = Trainer(
        config.train, Path("unused"), build_untrained(config, sizes), device=CPU, texts={}
    )
    for _ in range(steps):
        trainer.train_step(batches)
        trainer.step += 1
    return memory("VmHWM") - before


def measure(folder: Path) -> None:
    """Write the bytes of each case of a process alone, or of two.

    Freed tensors return to the system, as a GPU's allocator finds its own.
    """
    ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, 65536)
    small = config_of(batch_size=4)
    added(replace(small, model=replace(small.model, embed_dim=64)))  # loads what torch loads late
    cases = TOGETHER if processes.world_size() > 1 else ALONE
    sizes = {name: added(config_of(**train)) for name, train in cases.items()}
    path = folder / f"{processes.world_size()}_{processes.rank()}.json"
    path.write_text(json.dumps(sizes))
