"""What tests/run/test_plan.py runs in one and in two processes: the memory that steps of a small
model add to them."""

import ctypes
import gc
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from eve_vl.config import Config
from eve_vl.data.kinds.captions import ImageText
from eve_vl.recipes.registry import get_recipe
from eve_vl.run.loading import build_untrained
from eve_vl.tasks.task import Sizes, task_class
from eve_vl.train import processes
from eve_vl.train.trainer import Trainer
from helpers.twins import ListSource, noise, tiny_tokenizer

CPU = torch.device("cpu")
MMAP_THRESHOLD = -3  # of mallopt
TOKENIZER = tiny_tokenizer()
WORDS = ["red", "blue", "circle", "star", "green", "ring", "square", "left", "of", "one", "two"]
ALONE: dict[str, dict[str, Any]] = {
    "muon, averages": {"optimizer": "muon", "ema_decay": 0.9},
    "recomputed": {"checkpoint_activations": True},
}
TOGETHER: dict[str, dict[str, Any]] = {
    "replicate": {},
    "shard, two micro-batches": {"layout": "shard", "accumulation": 2},
}


def config_of(**train: Any) -> Config:
    """The demo with wider blocks and full texts in float32."""
    config = get_recipe("demo")
    given = {"batch_size": 32, "optimizer": "adamw", "dtype": "float32", "device": "cpu"} | train
    return replace(
        config,
        model=replace(config.model, embed_dim=256, num_heads=4),
        tokenizer=replace(config.tokenizer, vocab_size=TOKENIZER.vocab_size),
        train=replace(config.train, **given),
    )


def resident(kind: str) -> int:
    """Return bytes by a name of /proc/self/status."""
    found = re.search(rf"{kind}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


def added(config: Config, steps: int = 2) -> int:
    """Return the largest resident bytes of a training's steps, over those before its model."""
    world, total = processes.world_size(), config.train.batch_size
    rows = [
        ImageText(
            image=noise(row),
            captions=(" ".join(WORDS[(7 * row + 3 * i) % 11] for i in range(40)),),
            where=str(row),
        )
        for row in range(total)
    ]
    dataset = task_class(type(config.task)).dataset(
        [ListSource(rows)], config, TOKENIZER, training=True
    )
    own = torch.arange(total).chunk(world * config.train.accumulation)[processes.rank() :: world]
    batches = [dataset.collate([dataset[0, 0, row] for row in each.tolist()]) for each in own]
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = resident("VmRSS")
    torch.manual_seed(0)
    task = build_untrained(
        config, Sizes(vocab_size=TOKENIZER.vocab_size, mask_id=TOKENIZER.mask_id)
    )
    trainer = Trainer(config.train, Path("unused"), task, device=CPU, texts={})
    for _ in range(steps):
        trainer.train_step(batches)
        trainer.step += 1
    return resident("VmHWM") - before


def measure(folder: Path) -> None:
    """Write the bytes of each case of a process alone, or of two."""
    ctypes.CDLL(None).mallopt(
        MMAP_THRESHOLD, 65536
    )  # freed tensors return to the system, as a GPU's allocator finds theirs
    small = config_of(batch_size=4)
    added(replace(small, model=replace(small.model, embed_dim=64)))  # loads what torch loads late
    cases = TOGETHER if processes.world_size() > 1 else ALONE
    found = {name: added(config_of(**train)) for name, train in cases.items()}
    (folder / f"{processes.world_size()}_{processes.rank()}.json").write_text(json.dumps(found))
