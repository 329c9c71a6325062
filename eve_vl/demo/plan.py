"""The runs of the demo: one pre-training, then each task from pre-trained and from random weights.

Each run is a process with one thread; as many run at once as there are cores. This is the fastest
way to train small models on a CPU (LOG.md). Runs from random weights need only the shape and the
tokenizer, so they train while pre-training still runs.
"""

from dataclasses import replace
from pathlib import Path

from eve_vl.config import Config
from eve_vl.recipes import get_finetune_recipe, get_recipe

PRETRAIN = "pretrain"
SCRATCH = "_scratch"  # end of the names of runs from random weights
TASKS = ("vqa", "nlvr2", "retrieval")
FINE_TUNINGS = (
    "vqa_scratch",
    "nlvr2_scratch",
    "vqa",
    "retrieval_scratch",
    "nlvr2",
    "retrieval",
)
"""All fine-tunings in an order in which two cores finish at about the same time."""


def plan(out: Path) -> dict[str, Config]:
    """Return the config of every run by name, in the order in which they may start."""
    pretrain = replace(get_recipe("demo"), out=out / PRETRAIN)
    configs = {PRETRAIN: pretrain}
    for name in FINE_TUNINGS:
        task = name.removesuffix(SCRATCH)
        configs[name] = replace(
            get_finetune_recipe(f"demo_{task}", pretrain),
            init=pretrain.out,
            scratch=name.endswith(SCRATCH),
            out=out / name,
        )
    return {name: with_one_thread(config) for name, config in configs.items()}


def with_one_thread(config: Config) -> Config:
    """Return the config of a run that leaves the other cores to the other runs."""
    return replace(config, train=replace(config.train, threads=1))


def run_names() -> list[str]:
    """Return the names of all runs in the order of the report."""
    names = [PRETRAIN]
    for task in TASKS:
        names += [task, task + SCRATCH]
    return names
