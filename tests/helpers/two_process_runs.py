"""What tests/train/test_distributed.py does in two processes, which start again when one has
died."""

import os
import shlex
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
from eve_vl.config import Config
from eve_vl.data.kinds.texts import TextOnly
from eve_vl.data.loader import eval_loader, train_loader
from eve_vl.tasks.evaluator import evaluator_class, evaluator_of
from eve_vl.train import checkpoint_files, checkpoint_folders, processes
from eve_vl.train.bad_samples import BadSamples
from eve_vl.train.data_parallel import parallelize
from eve_vl.train.running_averages import share_running_averages
from eve_vl.train.trainer import Trainer
from eve_vl.utils.console import is_main
from eve_vl.utils.errors import SharedError
from helpers import two_processes
from helpers.forked import CONTEXT, PRELOAD
from helpers.tiny_config import tiny_config
from helpers.tiny_rows import ListSource, pairs
from helpers.tiny_tasks import CPU, TOKENIZER, build, config_of, eval_set, train_set

NUM_ROWS = 24
BATCH = 8
STEPS = 8
SAVED = 4  # the step of the checkpoint before the kill
KILLED = 5
NUM_UPDATES = 130  # after which 0.9 ** 130, a millionth, is left of the first values
TRAIN = {
    "steps": STEPS,
    "batch_size": BATCH,
    "val_every": 4,
    "save_every": SAVED,
    "log_every": 3,
    "lr": 1e-2,
    "ema_decay": 0.8,
    "device": "cpu",
}
# Both would make a tokenizer of all rows of scenes:train (tests/helpers/shortcuts.py). A step of
# one micro-batch is in two_processes.py.
FLAGS = shlex.split(
    "--train.steps 4 --train.log-every 1 --train.val-every 2 --train.batch-size 8 "
    "--train.accumulation 2 --train.dtype float32 --train.threads 1 --model.dropout 0 "
    "--model.balance-weight 0.5 --data.train scenes:val --data.val-samples 16"
)


def train(run: Path, *, dies: bool) -> None:
    """Train a head that standardises to the last step, or resume; or die on the way."""
    config = config_of("nlvr2_compare", train=TRAIN, model={"dropout": 0.1})
    rank = processes.rank()
    world = processes.world_size()
    task = build(config)
    dataset = train_set(config, NUM_ROWS)
    texts = {"config.json": "{}", "tokenizer.json": TOKENIZER.to_json()}
    run.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(rank)
    trainer = Trainer(config.train, run, task, evaluator_of(task), device=CPU, texts=texts)
    resume_as_on_a_network_disk(trainer)

    def batches(step: int) -> Iterator[Any]:
        while True:
            if dies and rank and step == KILLED:
                os.kill(os.getpid(), signal.SIGKILL)
            rows = [(step * BATCH + row) % NUM_ROWS for row in range(rank, BATCH, world)]
            yield dataset.collate([dataset[(step, 0, row)] for row in rows])
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
    with trainer.averages.in_place():
        weights = {key: value.clone() for key, value in task.state_dict().items()}
        save_file(weights, run / f"rank_{rank}.safetensors")


def resume_as_on_a_network_disk(trainer: Trainer) -> None:
    """Resume where only the first process sees the last checkpoint, and verifies it for all."""
    checksum = mock.Mock(wraps=checkpoint_files.checksum)
    if not is_main():
        checksum.side_effect = AssertionError("the first process verifies for all")

    def folders_that_are_seen(run: Path) -> list[Path]:
        folders = sorted((run / checkpoint_folders.CHECKPOINTS).glob("step_*"))
        return folders if is_main() else folders[:-1]

    with (
        mock.patch.object(checkpoint_folders, "checkpoint_folders", folders_that_are_seen),
        mock.patch.object(checkpoint_files, "checksum", checksum),
    ):
        trainer.resume()


class StandardizingHead(nn.Module):
    """A head with running averages."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(1, affine=False)
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return (self.norm(x) * self.weight).sum()


def small_updates() -> dict[str, Tensor]:
    """Return running averages after many steps on inputs around 0 in one process, around 10 in the
    other."""
    task = StandardizingHead()
    model = parallelize(task, CPU)
    inputs = torch.tensor([[-1.0], [1.0]]) + 10 * processes.rank()
    for _ in range(NUM_UPDATES):
        model(inputs).backward()
        share_running_averages(task)
    return {
        "mean": task.get_buffer("norm.running_mean"),
        "var": task.get_buffer("norm.running_var"),
    }


def texts_alone() -> dict[str, Tensor]:
    """Return gradients of two steps on texts, which leave weights for images without any.

    Their memory is that of a few buckets.
    """
    config = tiny_config(task={"mim_weight": 0.0}, data={"modality": "text"})
    task = build(config).train()
    model = parallelize(task, CPU)
    texts = ("a red circle", "two blue squares", "a star", "a green ring")
    rows = ListSource([TextOnly(text=text, where=text) for text in texts])
    dataset = train_set(config, len(texts), lambda _: rows)
    for step in range(2):
        rows_of_process = range(processes.rank(), len(texts), processes.world_size())
        samples = [dataset[(step, 0, row)] for row in rows_of_process]
        (batch,) = task.before_step([dataset.collate(samples)])
        model(batch).loss.backward()
    gradients = {}
    for name, parameter in task.named_parameters():
        if parameter.grad is not None:
            gradients[name] = parameter.grad
    buckets = {gradient.untyped_storage().data_ptr() for gradient in gradients.values()}
    assert len(buckets) < len(gradients) / 2
    return gradients


def rows_of_all() -> dict[str, Tensor]:
    """Return rows of all processes, and the gradient of their sum with other weights in each.

    No sum of padded rows makes them.
    """
    rank = processes.rank()
    rows = torch.arange(4.0).view(2, 2).add(10 * rank).requires_grad_()
    with mock.patch.object(dist, "all_reduce", side_effect=AssertionError):
        all_rows = processes.gather_rows(rows)
        weights = (1 + rank) * torch.arange(1.0, 5)[:, None]
        (gradient,) = torch.autograd.grad((all_rows * weights).sum(), rows)
    wanted = torch.tensor([3, 0, 3, 2, 0] if rank else [1, 1])
    with mock.patch.object(processes, "gather_rows", side_effect=AssertionError):
        fetched = processes.fetch_rows(rows.detach(), wanted)
    return {
        "rows": all_rows.detach() + 0,
        "gradient": gradient,
        "fetched": fetched,
        "wanted": wanted,
    }


def trainer_of(config: Config, run: Path) -> Trainer:
    task = build(config)
    return Trainer(config.train, run, task, evaluator_of(task), device=CPU, texts={})


def val_loader_of(config: Config, rows: ListSource[Any], batch_size: int) -> Any:
    """Return this process's share of validation."""
    dataset = evaluator_class(type(config.task)).dataset([rows], config, TOKENIZER)
    rank = processes.rank()
    world = processes.world_size()
    return eval_loader(
        dataset,
        batch_size=batch_size,
        rank=rank,
        world=world,
    )


def error_of_a_bad_row(run: Path) -> str:
    """Return what this process raises when another one's share of validation holds a row that
    cannot be used."""
    config = tiny_config()
    try:
        trainer_of(config, run).evaluate(val_loader_of(config, pairs(12, bad=[5]), 4))
    except SharedError as error:
        return str(error)
    return "nothing"


def error_of_a_pair_without_partner(run: Path) -> str:
    """Return what this process raises in the validation of a run when the other one's share holds a
    pair without a wrong partner."""
    captions = [("a circle",)] * 9 + [("a star",)] * 8 + [("a circle", "a star")]
    rows = []
    for row, texts in enumerate(captions):
        rows.append(replace(pairs(18)[row], captions=texts))
    config = tiny_config(
        train={
            "steps": 2,
            "val_every": 1,
            "save_every": 2,
            "device": "cpu",
        }
    )
    run.mkdir(exist_ok=True)
    loader = train_loader(
        train_set(config, 8), consumed=0, rank=processes.rank(), world=processes.world_size()
    )
    val_loader = val_loader_of(config, ListSource(rows), 1)
    bad_samples = BadSamples(
        run,
        num_rows=8,
        max_share=1,
        writes=is_main(),
    )
    try:
        trainer_of(config, run).fit(loader, val_loader, bad_samples)
    except SharedError as error:
        return str(error)
    return "nothing"


# Processes


def main(folder: Path) -> None:
    """Write what this process computes."""
    torch.set_num_threads(1)
    processes.setup(CPU)
    is_first = not (folder / "killed").exists()
    processes.barrier()
    if is_first:
        rank = processes.rank()
        train(folder / "whole", dies=False)
        save_file(small_updates(), folder / f"updates_{rank}.safetensors")
        save_file(texts_alone(), folder / f"texts_{rank}.safetensors")
        save_file(rows_of_all(), folder / f"rows_{rank}.safetensors")
        (folder / f"bad_{rank}.txt").write_text(error_of_a_bad_row(folder))
        error = error_of_a_pair_without_partner(folder / "partner")
        (folder / f"partner_{rank}.txt").write_text(error)
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
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
    )
    elastic_launch(config, main)(folder)


def torchrun(folder: Path) -> str:
    """Launch the two processes of `main`; return what was written to stderr."""
    CONTEXT.set_forkserver_preload(PRELOAD)
    launcher = CONTEXT.Process(target=launch, args=(folder,))
    launcher.start()
    launcher.join(300)
    stderr = (folder / "stderr").read_text()
    assert launcher.exitcode == 0, stderr
    return stderr
