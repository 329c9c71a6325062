"""What tests/train/test_distributed.py does in two processes, which start again when one has
died."""

import os
import signal
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from eve_vl.cli.main import main as eve_command
from eve_vl.data.kinds.texts import TextOnly
from eve_vl.data.loader import eval_loader, train_loader
from eve_vl.tasks.evaluator import evaluator_class, evaluator_of
from eve_vl.tasks.task import task_class
from eve_vl.train import checkpoint_files, checkpoint_folders, processes
from eve_vl.train.bad_samples import BadSamples
from eve_vl.train.data_parallel import parallelize
from eve_vl.train.running_averages import share_running_averages
from eve_vl.train.trainer import Trainer
from eve_vl.utils.console import is_main
from eve_vl.utils.errors import SharedError
from helpers import two_processes
from helpers.forked import CONTEXT, PRELOAD
from helpers.tiny_tasks import TOKENIZER, build, config_of, eval_set, train_set
from helpers.twins import ListSource, pairs, tiny_config

NUM_ROWS = 24
BATCH = 8
STEPS = 20
SAVED = 10  # the step of the checkpoint before the kill
KILLED = 13
UPDATES = 200
# of all rows of scenes both would make a tokenizer (tests/helpers/shortcuts.py); a step of one
# micro-batch: two_processes.py
FLAGS = [
    "--train.steps",
    "8",
    "--train.log-every",
    "1",
    "--train.val-every",
    "4",
    "--train.batch-size",
    "16",
    "--train.accumulation",
    "2",
    "--train.dtype",
    "float32",
    "--train.threads",
    "1",
    "--model.dropout",
    "0",
    "--model.balance-weight",
    "0.5",
    "--data.train",
    "scenes:val",
    "--data.val-samples",
    "32",
]


def train(run: Path, *, dies: bool) -> None:
    """Train a head that standardises to the last step, or go on; or die on the way."""
    train_config = {
        "steps": STEPS,
        "batch_size": BATCH,
        "val_every": 5,
        "save_every": SAVED,
        "log_every": 4,
        "lr": 1e-2,
        "ema_decay": 0.8,
    }
    config = config_of(
        "nlvr2_compare", train=train_config | {"device": "cpu"}, model={"dropout": 0.1}
    )
    rank, world = processes.rank(), processes.world_size()
    task, dataset = build(config), train_set(config, NUM_ROWS)
    texts = {"config.json": "{}", "tokenizer.json": TOKENIZER.to_json()}
    run.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(rank)
    trainer = Trainer(
        config.train, run, task, evaluator_of(task), device=torch.device("cpu"), texts=texts
    )
    checksum = None if is_main() else AssertionError("the first process verifies for all")
    with (
        mock.patch.object(checkpoint_folders, "checkpoint_folders", seen_by_this_process),
        mock.patch.object(
            checkpoint_files, "checksum", side_effect=checksum, wraps=checkpoint_files.checksum
        ),
    ):
        trainer.resume()

    def batches(step: int) -> Iterator[Any]:
        while True:
            if dies and rank and step == KILLED:
                os.kill(os.getpid(), signal.SIGKILL)
            rows = [(step * BATCH + row) % NUM_ROWS for row in range(rank, BATCH, world)]
            yield dataset.collate([dataset[(step, 0, row)] for row in rows])
            step += 1

    val_loader = eval_loader(eval_set(config), batch_size=4, rank=rank, world=world)
    bad_samples = BadSamples(run, num_rows=NUM_ROWS, max_share=1, writes=is_main())
    trainer.fit(batches(trainer.step), val_loader, bad_samples)
    with trainer.averages.in_place():
        save_file(
            {key: value.clone() for key, value in task.state_dict().items()},
            run / f"rank_{rank}.safetensors",
        )


def seen_by_this_process(run: Path) -> list[Path]:
    """Checkpoints of a run on a network disk, which shows the last one to the first process
    only."""
    folders = sorted((run / checkpoint_folders.CHECKPOINTS).glob("step_*"))
    return folders if is_main() else folders[:-1]


class Averages(nn.Module):
    """A head that standardises."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(1, affine=False)
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return (self.norm(x) * self.weight).sum()


def small_updates() -> dict[str, Tensor]:
    """Running averages after many steps on inputs around 0 in one process, around 10 in the
    other."""
    task = Averages()
    model = parallelize(task, torch.device("cpu"))
    for _ in range(UPDATES):
        model(torch.tensor([[-1.0], [1.0]]) + 10 * processes.rank()).backward()
        share_running_averages(task)
    return {
        "mean": task.get_buffer("norm.running_mean"),
        "var": task.get_buffer("norm.running_var"),
    }


def texts_alone() -> dict[str, Tensor]:
    """Gradients of two steps on texts, which leave what reads images without any."""
    config = tiny_config(task={"mim_weight": 0.0}, data={"modality": "text"})
    task = build(config).train()
    model = parallelize(task, torch.device("cpu"))
    rows = [
        TextOnly(text=text, where=text)
        for text in ("a red circle", "two blue squares", "a star", "a green ring")
    ]
    dataset = task_class(type(config.task)).dataset(
        [ListSource(rows)], config, TOKENIZER, training=True
    )
    for step in range(2):
        own = [
            dataset[(step, 0, row)]
            for row in range(processes.rank(), len(rows), processes.world_size())
        ]
        (batch,) = task.before_step([dataset.collate(own)])
        model(batch).loss.backward()
    gradients = {
        name: parameter.grad
        for name, parameter in task.named_parameters()
        if parameter.grad is not None
    }
    assert (
        len({gradient.untyped_storage().data_ptr() for gradient in gradients.values()})
        < len(gradients) / 2
    )
    return gradients


def rows_of_all() -> dict[str, Tensor]:
    """Rows of all processes, and the gradient of their sum with other weights in each; no sum of
    padded rows makes them."""
    rank = processes.rank()
    rows = torch.arange(4.0).view(2, 2).add(10 * rank).requires_grad_()
    with mock.patch.object(dist, "all_reduce", side_effect=AssertionError):
        found = processes.gather_rows(rows)
        (gradient,) = torch.autograd.grad(
            (found * (1 + rank) * torch.arange(1.0, 5)[:, None]).sum(), rows
        )
    wanted = torch.tensor([3, 0, 3, 2, 0] if rank else [1, 1])
    with mock.patch.object(processes, "gather_rows", side_effect=AssertionError):
        fetched = processes.fetch_rows(rows.detach(), wanted)
    return {"rows": found.detach() + 0, "gradient": gradient, "fetched": fetched, "wanted": wanted}


def bad_row(run: Path) -> str:
    """What this process raises when another one's share of validation holds a row that cannot be
    used."""
    config = tiny_config()
    task = build(config)
    trainer = Trainer(
        config.train, run, task, evaluator_of(task), device=torch.device("cpu"), texts={}
    )
    dataset = evaluator_class(type(config.task)).dataset([pairs(12, bad=[5])], config, TOKENIZER)
    try:
        trainer.evaluate(
            eval_loader(dataset, batch_size=4, rank=processes.rank(), world=processes.world_size())
        )
    except SharedError as error:
        return str(error)
    return "nothing"


def alone_of_its_caption(run: Path) -> str:
    """What this process raises at the validation of a run when the other one's share holds a pair
    without a wrong partner."""
    captions = [("a circle",)] * 9 + [("a star",)] * 8 + [("a circle", "a star")]
    rows = [
        replace(row, captions=texts)
        for row, texts in zip(pairs(18).rows, captions, strict=True)
        if row
    ]
    config = tiny_config(train={"steps": 2, "val_every": 1, "save_every": 2, "device": "cpu"})
    dataset = task_class(type(config.task)).dataset([pairs(8)], config, TOKENIZER, training=True)
    val = evaluator_class(type(config.task)).dataset([ListSource(rows)], config, TOKENIZER)
    rank, world = processes.rank(), processes.world_size()
    run.mkdir(exist_ok=True)
    task = build(config)
    trainer = Trainer(
        config.train, run, task, evaluator_of(task), device=torch.device("cpu"), texts={}
    )
    loaders = (
        train_loader(dataset, consumed=0, rank=rank, world=world),
        eval_loader(val, batch_size=1, rank=rank, world=world),
    )
    try:
        trainer.fit(*loaders, BadSamples(run, num_rows=8, max_share=1, writes=is_main()))
    except SharedError as error:
        return str(error)
    return "nothing"


def main(folder: Path) -> None:
    """Write what this process found."""
    torch.set_num_threads(1)
    processes.setup(torch.device("cpu"))
    is_first = not (folder / "killed").exists()
    processes.barrier()
    if is_first:
        train(folder / "whole", dies=False)
        save_file(small_updates(), folder / f"updates_{processes.rank()}.safetensors")
        save_file(texts_alone(), folder / f"texts_{processes.rank()}.safetensors")
        save_file(rows_of_all(), folder / f"rows_{processes.rank()}.safetensors")
        (folder / f"bad_{processes.rank()}.txt").write_text(bad_row(folder))
        (folder / f"partner_{processes.rank()}.txt").write_text(
            alone_of_its_caption(folder / "partner")
        )
    train(folder / "killed", dies=is_first)
    two_processes.write_all(folder)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = processes.gather_objects(server.getsockname()[1])[0]
    processes.shutdown()
    # a second group needs a store of its own, or it reads the addresses of the first one
    os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "False", "MASTER_PORT": str(port)}
    eve_command(["pretrain", "tiny", "--out", str(folder / "two"), *FLAGS])


def launch(folder: Path) -> None:
    """Do what `torchrun --standalone --nproc-per-node 2 --max-restarts 1` does, with forks: their
    imports are done."""
    os.dup2(os.open(folder / "stderr", os.O_CREAT | os.O_WRONLY), 2)
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # docs/distributed.md
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        max_restarts=1,
        start_method="fork",
        run_id=folder.name,
    )
    elastic_launch(replace(config, rdzv_backend="c10d", rdzv_endpoint="localhost:0"), main)(folder)


def torchrun(folder: Path) -> str:
    """Launch the two processes of `main`; return what was written to stderr."""
    CONTEXT.set_forkserver_preload(PRELOAD)
    launcher = CONTEXT.Process(target=launch, args=(folder,))
    launcher.start()
    launcher.join(300)
    stderr = (folder / "stderr").read_text()
    assert launcher.exitcode == 0, stderr
    return stderr
