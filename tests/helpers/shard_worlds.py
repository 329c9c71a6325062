"""What tests/train/test_shard.py runs in two and in four processes."""

import contextlib
import faulthandler
import math
import os
import shutil
import socket
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from eve_vl.config import Config
from eve_vl.data.loader import eval_loader
from eve_vl.systems.mlim.pair.config import PairConfig
from eve_vl.tasks.contrast_match.config import ContrastMatchConfig
from eve_vl.tasks.evaluator import evaluator_of
from eve_vl.tasks.task import task_class
from eve_vl.train import processes
from eve_vl.train.bad_samples import BadSamples
from eve_vl.train.block_wrapping import wrap_blocks
from eve_vl.train.data_parallel import parallelize, without_gradient_averaging
from eve_vl.train.gradient_clipping import clip_gradients
from eve_vl.train.optimizer import build_optimizer
from eve_vl.train.shard import gathered
from eve_vl.train.trainer import Trainer
from eve_vl.utils.console import is_main
from eve_vl.utils.errors import UserError
from helpers.forked import CONTEXT, PRELOAD
from helpers.mlim import item_pairs, mlim_config
from helpers.tiny_tasks import TOKENIZER, build, config_of, eval_set, train_set
from helpers.twins import pairs, tiny_config

CPU = torch.device("cpu")
NUM_ROWS = 8
NOISE = {"balance_weight": 0.5, "dropout": 0.1, "drop_path": 0.1}
BOTH = ContrastMatchConfig(itc_targets="diagonal", itm_negatives="global", memory_batches=1)
STEPS_OF = {
    # with blocks of 64 rows, some weights have a whole number of them in each process, some do not
    "masked": tiny_config(model=NOISE | {"embed_dim": 64}, train={"checkpoint_activations": True}),
    "frozen": tiny_config(model=NOISE, train={"freeze": ("encoder.*",)}),
    "contrast and matching": tiny_config(model=NOISE, task=BOTH),
    "accumulated": tiny_config(model=NOISE, task=BOTH, train={"accumulation": 2}),
    "pair": tiny_config(model=NOISE, task=PairConfig(modality_dropout=False)),
    "vqa": config_of("vqa", model=NOISE),
    "nlvr2": config_of("nlvr2_compare", model=NOISE),
    "odd": tiny_config(
        model=NOISE | {"embed_dim": 18, "num_experts": 6}
    ),  # no axis of some weights divides by four
}
"""Configs of the steps whose gradients are compared."""
IN_WORLD = {2: [*STEPS_OF][:-1], 4: ["accumulated", "odd"]}
MOVED = ("masked", "odd")
"""The steps whose weights are compared after an update by block_muon."""
RUN = {"batch_size": 8, "log_every": 2, "lr": 1e-3, "lr_multipliers": (("*temperature", 500.0),)}
RUN |= {"device": "cpu", "dtype": "float32"}
WHOLE = RUN | {
    "steps": 6,
    "val_every": 3,
    "save_every": 4,
    "optimizer": "muon",
    "clip_norm": 0.0,
    "ema_decay": 0.8,
}
CLIPPED = RUN | {"steps": 4, "val_every": 4, "save_every": 2, "accumulation": 2}
RUNS = {
    "muon": config_of("retrieval", train=WHOLE),
    "adamw": config_of("retrieval_itc", train=CLIPPED),
}


def start(
    rank: int, world: int, port: int, folder: Path, job: Callable[[Path], None], env: dict[str, str]
) -> None:
    """Join a world as torchrun would have it, and do a job."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
    }
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)} | env
    torch.set_num_threads(1)
    faulthandler.enable()  # a crash leaves no traceback otherwise
    processes.setup(CPU)
    try:
        job(folder)
    except BaseException:
        (folder / f"error_{rank}.txt").write_text(traceback.format_exc())
        raise
    finally:
        processes.shutdown()


def in_world(world: int, folder: Path, job: Callable[[Path], None], **env: str) -> None:
    """Do a job in several processes, forks of a server whose imports are done."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    CONTEXT.set_forkserver_preload(PRELOAD)
    started = [
        CONTEXT.Process(target=start, args=(rank, world, port, folder, job, env))
        for rank in range(world)
    ]
    for each in started:
        each.start()
    for each in started:
        each.join(300)
    errors = "\n".join(path.read_text() for path in sorted(folder.glob("error_*")))
    assert not any(codes := [each.exitcode for each in started]), f"exit codes {codes}\n{errors}"


def rows_of(config: Config) -> Any:
    """Rows to train a task on."""
    if isinstance(config.task, PairConfig):
        return task_class(PairConfig).dataset(
            [item_pairs(NUM_ROWS)], config, TOKENIZER, training=True
        )
    if config.task.name in ("vqa", "nlvr2", "retrieval"):
        return train_set(config, NUM_ROWS)
    return task_class(type(config.task)).dataset(
        [pairs(NUM_ROWS)], config, TOKENIZER, training=True
    )


def step(config: Config, layout: str, steps: bool) -> dict[str, Tensor]:
    """The gradients of a step, their norm, and for some the weights after it."""
    task, rows = build(config).train(), rows_of(config)
    wrap_blocks(task, config.train)
    for name, parameter in task.named_parameters():
        parameter.requires_grad_(not (config.train.freeze and name.startswith("encoder.")))
    model, num = parallelize(task, CPU, layout), config.train.accumulation
    torch.manual_seed(processes.rank())
    own = torch.arange(NUM_ROWS).chunk(processes.world_size())[processes.rank()].chunk(num)
    batches = task.before_step(
        [rows.collate([rows[0, 0, row] for row in part.tolist()]) for part in own]
    )
    for index, batch in enumerate(batches):
        with without_gradient_averaging(model) if index < num - 1 else contextlib.nullcontext():
            (model(batch).loss / num).backward()
    norm = clip_gradients(task, float("inf"))
    assert layout != "shard" or all(
        isinstance(each, DTensor) == bool(each.ndim) for each in task.parameters()
    )
    found = {
        name: parameter.grad
        for name, parameter in task.named_parameters()
        if parameter.grad is not None
    }
    found, weights = gathered(found), {}
    if steps:
        build_optimizer(
            task.named_parameters(), replace(config.train, optimizer="block_muon", lr=1e-2)
        ).step()
        weights = gathered(
            {f"after.{name}": parameter.detach() for name, parameter in task.named_parameters()}
        )
    return {name: value.clone() for name, value in found.items()} | weights | {"norm": norm}


def fit(config: Config, run: Path, layout: str, resumes: Path | None = None) -> None:
    """Train to the last step, or resume another run in the middle."""
    if resumes is not None and is_main():
        shutil.copytree(
            resumes, run, ignore=shutil.ignore_patterns(f"step_{config.train.steps:08d}")
        )
    processes.barrier()
    run.mkdir(parents=True, exist_ok=True)
    rank, world = processes.rank(), processes.world_size()
    task, dataset = build(config), rows_of(config)
    texts = {"config.json": "{}", "tokenizer.json": TOKENIZER.to_json()}
    train = replace(config.train, layout=layout)
    torch.manual_seed(rank)
    trainer = Trainer(train, run, task, evaluator_of(task), device=CPU, texts=texts)
    trainer.resume()

    def batches(step: int) -> Iterator[Any]:
        while True:
            rows = torch.arange(step * train.batch_size, (step + 1) * train.batch_size) % NUM_ROWS
            for part in rows.chunk(train.accumulation):
                yield dataset.collate(
                    [dataset[(step, 0, row)] for row in part.chunk(world)[rank].tolist()]
                )
            step += 1

    val_loader = eval_loader(eval_set(config), batch_size=4, rank=rank, world=world)
    trainer.fit(
        batches(trainer.step),
        val_loader,
        BadSamples(run, num_rows=NUM_ROWS, max_share=1, writes=is_main()),
    )


def write_steps(folder: Path) -> None:
    """Write what steps give in both layouts."""
    world = processes.world_size()
    for name in IN_WORLD[world]:
        os.environ["LOCAL_WORLD_SIZE"] = (
            "2" if name != "odd" else str(world)
        )  # at four: two machines, or one
        for layout in ("replicate", "shard"):
            found = step(STEPS_OF[name], layout, name in MOVED)
            if is_main():
                save_file(
                    {key: value.contiguous() for key, value in found.items()},
                    folder / f"{name} {layout} {world}",
                )


def stop(run: Path) -> str:
    """Train until a weight is not finite."""
    config = tiny_config(train={"layout": "shard"})
    trainer = Trainer(config.train, run, task := build(config), device=CPU, texts={})
    with torch.no_grad():
        next(task.parameters()).fill_(math.nan)
    try:
        trainer.train_step([rows_of(config).collate([rows_of(config)[0, 0, processes.rank()]])])
    except UserError as error:
        return str(error)
    return ""


def two(folder: Path) -> None:
    """Do what two processes compare."""
    write_steps(folder)
    (folder / f"stopped_{processes.rank()}.txt").write_text(stop(folder / "stopped"))
    for name, config in RUNS.items():
        for layout in ("replicate", "shard"):
            fit(config, folder / f"{name}_{layout}", layout)
    fit(RUNS["muon"], folder / "resumed", "shard", folder / "muon_shard")
    tasks = build(mlim_config()), build(tiny_config(task=PairConfig())), torch.nn.Linear(2, 2)
    for number, task in enumerate(tasks):
        try:
            parallelize(task, CPU, "shard")
        except UserError as error:
            (folder / f"refused_{number}_{processes.rank()}.txt").write_text(str(error))


def four(folder: Path) -> None:
    """Do what four processes compare, two on each of two machines."""
    write_steps(folder)
    fit(RUNS["adamw"], folder / "four", "shard", folder / "adamw_shard")
