"""What tests/train/test_shard.py runs in two and in four processes."""

import contextlib
import faulthandler
import math
import os
import shutil
import socket
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from eve_vl.config import Config
from eve_vl.data.loader import eval_loader
from eve_vl.data.row_dataset import RowDataset
from eve_vl.systems.mlim.pair.config import PairConfig
from eve_vl.tasks.contrast_match.config import ContrastMatchConfig
from eve_vl.tasks.evaluator import evaluator_of
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
from helpers.number_task import step_folder
from helpers.tiny_config import tiny_config
from helpers.tiny_tasks import CPU, TOKENIZER, build, config_of, eval_set, train_set

NUM_ROWS = 8
LAYOUTS = ("replicate", "shard")
NOISE = {"balance_weight": 0.5, "dropout": 0.1, "drop_path": 0.1}
MATCHING = ContrastMatchConfig(itc_targets="diagonal", itm_negatives="global", memory_batches=1)
# with blocks of 64 rows, some weights have a whole number of them in each process, some do not
WIDE = NOISE | {"embed_dim": 64}
# no axis of some weights divides by four
ODD = NOISE | {"embed_dim": 18, "num_experts": 6}
STEPS_OF = {
    "masked": tiny_config(model=WIDE, train={"checkpoint_activations": True}),
    "frozen": tiny_config(model=NOISE, train={"freeze": ("encoder.*",)}),
    "accumulated": tiny_config(model=NOISE, task=MATCHING, train={"accumulation": 2}),
    "pair": tiny_config(model=NOISE, task=PairConfig(modality_dropout=False)),
    "nlvr2": config_of("nlvr2_compare", model=NOISE),
    "odd": tiny_config(model=ODD),
}
"""Configs of the steps whose gradients are compared."""
STEPS_IN_WORLD = {2: [name for name in STEPS_OF if name != "odd"], 4: ["accumulated", "odd"]}
UPDATED = ("masked", "odd")
"""The steps whose weights are compared after an update by block_muon."""
RUN = {
    "batch_size": 8,
    "log_every": 2,
    "lr": 1e-3,
    "lr_multipliers": (("*temperature", 500.0),),
    "device": "cpu",
    "dtype": "float32",
}
MUON = RUN | {
    "steps": 4,
    "val_every": 2,
    "save_every": 3,
    "optimizer": "muon",
    "clip_norm": 0.0,
    "ema_decay": 0.8,
}
ADAMW = RUN | {"steps": 4, "val_every": 4, "save_every": 2, "accumulation": 2}
RUNS = {
    "muon": config_of("retrieval", train=MUON),
    "adamw": config_of("retrieval_itc", train=ADAMW),
}


# Processes


def in_world(world: int, folder: Path, job: Callable[[Path], None], **env: str) -> None:
    """Do a job in several processes, forks of a server whose imports are done."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    CONTEXT.set_forkserver_preload(PRELOAD)
    children = []
    for rank in range(world):
        arguments = (rank, world, port, folder, job, env)
        children.append(CONTEXT.Process(target=join_world, args=arguments))
    for child in children:
        child.start()
    for child in children:
        child.join(300)
    codes = [child.exitcode for child in children]
    errors = "\n".join(path.read_text() for path in sorted(folder.glob("error_*")))
    assert codes == [0] * world, f"exit codes {codes}\n{errors}"


def join_world(
    rank: int,
    world: int,
    port: int,
    folder: Path,
    job: Callable[[Path], None],
    env: Mapping[str, str],
) -> None:
    """Join a world as torchrun would have it, and do a job."""
    for name in ("RANK", "LOCAL_RANK"):
        os.environ[name] = str(rank)
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        os.environ[name] = str(world)
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    os.environ["MASTER_PORT"] = str(port)
    os.environ.update(env)
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


# Steps


def rows_to_train(config: Config) -> RowDataset:
    if isinstance(config.task, PairConfig):
        return train_set(config, NUM_ROWS, item_pairs)
    return train_set(config, NUM_ROWS)


def step(config: Config, layout: str, is_updated: bool) -> dict[str, Tensor]:
    """Return the gradients of a step, their norm, and for some the weights after it."""
    task = build(config).train()
    dataset = rows_to_train(config)
    wrap_blocks(task, config.train)
    for name, parameter in task.named_parameters():
        is_frozen = bool(config.train.freeze) and name.startswith("encoder.")
        parameter.requires_grad_(not is_frozen)
    model = parallelize(task, CPU, layout)
    torch.manual_seed(processes.rank())

    num_batches = config.train.accumulation
    rows_of_process = torch.arange(NUM_ROWS).chunk(processes.world_size())[processes.rank()]
    batches = []
    for rows in rows_of_process.chunk(num_batches):
        batches.append(dataset.collate([dataset[0, 0, row] for row in rows.tolist()]))
    for index, batch in enumerate(task.before_step(batches)):
        is_last = index == num_batches - 1
        with contextlib.nullcontext() if is_last else without_gradient_averaging(model):
            (model(batch).loss / num_batches).backward()
    norm = clip_gradients(task, float("inf"))

    if layout == "shard":
        for parameter in task.parameters():
            assert isinstance(parameter, DTensor) == bool(parameter.ndim)
    gradients = {}
    for name, parameter in task.named_parameters():
        if parameter.grad is not None:
            gradients[name] = parameter.grad
    results = {name: value.clone() for name, value in gathered(gradients).items()}
    if is_updated:
        results |= weights_after_update(task, config)
    return results | {"norm": norm}


def weights_after_update(task: Any, config: Config) -> dict[str, Tensor]:
    train_config = replace(config.train, optimizer="block_muon", lr=1e-2)
    build_optimizer(task.named_parameters(), train_config).step()
    weights = {}
    for name, parameter in task.named_parameters():
        weights[f"after.{name}"] = parameter.detach()
    return gathered(weights)


def write_steps(folder: Path) -> None:
    """Write what steps give in both layouts. At four processes: two machines, or one."""
    world = processes.world_size()
    for name in STEPS_IN_WORLD[world]:
        os.environ["LOCAL_WORLD_SIZE"] = str(world) if name == "odd" else "2"
        for layout in LAYOUTS:
            results = step(STEPS_OF[name], layout, name in UPDATED)
            if is_main():
                tensors = {key: value.contiguous() for key, value in results.items()}
                save_file(tensors, folder / f"{name} {layout} {world}")


# Runs


def fit(
    config: Config,
    run: Path,
    layout: str,
    resumed_run: Path | None = None,
) -> None:
    """Train to the last step, or resume a copy of another run in the middle."""
    if resumed_run is not None and is_main():
        last = step_folder(run, config.train.steps).name
        shutil.copytree(resumed_run, run, ignore=shutil.ignore_patterns(last))
    processes.barrier()
    run.mkdir(parents=True, exist_ok=True)
    rank = processes.rank()
    world = processes.world_size()
    task = build(config)
    dataset = rows_to_train(config)
    texts = {"config.json": "{}", "tokenizer.json": TOKENIZER.to_json()}
    train = replace(config.train, layout=layout)
    torch.manual_seed(rank)
    trainer = Trainer(train, run, task, evaluator_of(task), device=CPU, texts=texts)
    trainer.resume()

    def batches(step: int) -> Iterator[Any]:
        while True:
            rows = torch.arange(step * train.batch_size, (step + 1) * train.batch_size) % NUM_ROWS
            for micro_batch in rows.chunk(train.accumulation):
                rows_of_process = micro_batch.chunk(world)[rank].tolist()
                yield dataset.collate([dataset[(step, 0, row)] for row in rows_of_process])
            step += 1

    val_loader = eval_loader(
        eval_set(config),
        batch_size=4,
        rank=rank,
        world=world,
    )
    bad_samples = BadSamples(
        run,
        num_rows=NUM_ROWS,
        max_share=1,
        writes=is_main(),
    )
    trainer.fit(batches(trainer.step), val_loader, bad_samples)


def error_of_nan(run: Path) -> str:
    """Return the error of a step on a weight that is not finite."""
    config = tiny_config(train={"layout": "shard"})
    task = build(config)
    trainer = Trainer(config.train, run, task, device=CPU, texts={})
    with torch.no_grad():
        next(task.parameters()).fill_(math.nan)
    dataset = rows_to_train(config)
    batch = dataset.collate([dataset[0, 0, processes.rank()]])
    try:
        trainer.train_step([batch])
    except UserError as error:
        return str(error)
    return ""


def error_of_shards(task: Any) -> str:
    """Return why a task is not trained in shards."""
    try:
        parallelize(task, CPU, "shard")
    except UserError as error:
        return str(error)
    return ""


def two(folder: Path) -> None:
    """Do what two processes compare."""
    rank = processes.rank()
    write_steps(folder)
    (folder / f"stopped_{rank}.txt").write_text(error_of_nan(folder / "stopped"))
    for name, config in RUNS.items():
        for layout in LAYOUTS:
            fit(config, folder / f"{name}_{layout}", layout)
    fit(RUNS["muon"], folder / "resumed", "shard", folder / "muon_shard")
    tasks = (
        build(mlim_config()),
        build(tiny_config(task=PairConfig())),
        torch.nn.Linear(2, 2),
    )
    for number, task in enumerate(tasks):
        (folder / f"refused_{number}_{rank}.txt").write_text(error_of_shards(task))


def four(folder: Path) -> None:
    """Do what four processes compare, two on each of two machines."""
    write_steps(folder)
    fit(RUNS["adamw"], folder / "four", "shard", folder / "adamw_shard")
