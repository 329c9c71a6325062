"""The computations of tasks that tests/helpers/two_process_runs.py does in two processes."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from eve_vl import objectives
from eve_vl.config import Config
from eve_vl.data.loader import eval_loader
from eve_vl.metrics.intervals import to_json
from eve_vl.systems.mlim.pair.config import PairConfig
from eve_vl.tasks.contrast_match.config import ContrastMatchConfig
from eve_vl.tasks.evaluator import evaluator_of
from eve_vl.tasks.masked_signal.dataset import MaskedPairs
from eve_vl.tasks.retrieval.config import RetrievalConfig
from eve_vl.tasks.retrieval.search_set import SearchSet
from eve_vl.tasks.retrieval.task import Retrieval
from eve_vl.train import processes
from eve_vl.train.bad_samples import BadSamples
from eve_vl.train.trainer import Trainer
from eve_vl.utils.console import is_main
from helpers.mlim import build_mlim, item_pairs, mlim_config, mlim_rows
from helpers.tiny_config import tiny_config
from helpers.tiny_rows import ListSource, pairs
from helpers.tiny_tasks import (
    CPU,
    TOKENIZER,
    build,
    config_of,
    eval_set,
    numbers_of,
    searchable,
    train_set,
)

NUM_ROWS = 8
WORLD = 2
IMAGES = (0, 1, 2, 1, 0, 3, 0, 4)  # captions of one image in both processes
EVALUATED = ("vqa", "nlvr2", "retrieval", "retrieval_merged", "retrieval_itc")


def share(x: Tensor) -> Tensor:
    """Return this process's rows, all of them without a group."""
    return x.chunk(processes.world_size())[processes.rank()]


def share_of_batch(dataset: Any, rows: Sequence[int] = range(NUM_ROWS), epoch: int = 0) -> Any:
    """Return this process's rows as a batch."""
    rows_of_process = share(torch.tensor(rows)).tolist()
    return dataset.collate([dataset[(epoch, 0, row)] for row in rows_of_process])


def distributed(task: Any) -> nn.Module:
    return DistributedDataParallel(task) if processes.world_size() > 1 else task


def gradient_of(x: Tensor) -> Tensor:
    assert x.grad is not None
    return x.grad


def gradients_of_step(task: Any, batch: Any) -> dict[str, Tensor]:
    """Return the gradients of all parameters, as training takes them."""
    model = distributed(task)  # dropped before the backward pass, it would average nothing
    model(batch).loss.backward()
    return {name: gradient_of(parameter) for name, parameter in task.named_parameters()}


# Steps


def contrast_of_features() -> dict[str, Tensor]:
    """Return the loss of fixed features and its gradients, which processes average as
    DistributedDataParallel does."""
    rng = torch.Generator().manual_seed(0)
    images = torch.randn(NUM_ROWS, 6, generator=rng)
    texts = torch.randn(NUM_ROWS, 6, generator=rng)
    image_input = share(images).clone().requires_grad_()
    text_input = share(texts).clone().requires_grad_()
    temperature = torch.tensor(0.3, requires_grad=True)
    image_C = torch.tensor(IMAGES)

    image_BD = F.normalize(image_input, dim=1)
    text_BD = F.normalize(text_input, dim=1)
    image_CD = processes.gather_rows(image_BD)
    text_CD = processes.gather_rows(text_BD)
    assert torch.equal(processes.gather_rows(share(image_C)), image_C)
    targets_BC = objectives.even_targets(share(image_C)[:, None] == image_C)
    loss = objectives.contrastive(image_BD, text_BD, image_CD, text_CD, targets_BC, temperature)
    loss.backward()
    world = processes.world_size()
    return {
        "loss": processes.sum_over_processes(loss.detach()) / world,
        "temperature": processes.sum_over_processes(gradient_of(temperature)) / world,
        "image": processes.gather_rows(gradient_of(image_input)) / world,
        "text": processes.gather_rows(gradient_of(text_input)) / world,
    }


def gradients_of_a_step() -> dict[str, Tensor]:
    """Return gradients of the whole retrieval task by contrast; two rows show one image."""
    config = config_of("retrieval_itc", model={"balance_weight": 0.5})
    dataset = train_set(config, NUM_ROWS)
    dataset.sources[0].rows[5] = dataset.sources[0][2]  # pyright: ignore[reportAttributeAccessIssue]
    return gradients_of_step(build(config), share_of_batch(dataset))


def systems_config() -> Config:
    """Return pre-training by contrast, its singular values and matching with negatives of all
    processes."""
    settings = ContrastMatchConfig(
        mlm_weight=0.0,
        itc_masked_image=True,
        itc_targets="diagonal",
        itm_negatives="global",
        svd_form="sigma1",
    )
    return tiny_config(task=settings, model={"balance_weight": 0.0})


def systems_step() -> dict[str, Tensor]:
    config = systems_config()
    return gradients_of_step(build(config).train(), share_of_batch(train_set(config, NUM_ROWS)))


@torch.no_grad()
def drawn_negatives() -> dict[str, Tensor]:
    """Return which row's image and which row's text are the wrong partners of each row of all
    processes, in several epochs."""
    config = systems_config()
    task: Any = build(config).train()
    dataset = train_set(config, NUM_ROWS)
    images = []
    texts = []
    for epoch in range(6):
        all_rows: Any = dataset.collate([dataset[(epoch, 0, row)] for row in range(NUM_ROWS)])
        batch = share_of_batch(dataset, epoch=epoch)
        features = task.contrast.unimodal(task.encoder, batch)
        (wrong,) = task.contrast.fetch_negatives(
            task.encoder,
            [batch],
            features.image_BXd,
            features.text_BXd,
            task.contrast.features.temperature,
        )
        images.append(rows_that_equal(wrong.partners.images_BCHW, all_rows.images_BCHW))
        texts.append(rows_that_equal(wrong.partners.ids_BT, all_rows.ids_BT))
    return {
        "images": torch.stack(images),
        "texts": torch.stack(texts),
    }


def rows_that_equal(partners: Tensor, rows: Tensor) -> Tensor:
    """Return the row of all that each partner of all processes is, but for padding."""
    rows = rows[..., : partners.shape[-1]]
    partners = F.pad(partners, (0, rows.shape[-1] - partners.shape[-1]))
    is_equal_BC = (partners[:, None] == rows).flatten(2).all(2)
    assert is_equal_BC.any(1).all()
    return processes.gather_rows(is_equal_BC.int().argmax(1))


def memory_step() -> dict[str, Tensor]:
    """Return gradients of a step with features of the step before it.

    Some captions and images are in both processes, some are remembered.
    """
    settings = RetrievalConfig(
        itm_weight=0.0,
        rerank=0,
        projection_dim=8,
        memory_batches=1,
    )
    config = tiny_config(task=settings, model={"balance_weight": 0.0})
    task: Any = build(config).train()
    model = distributed(task)
    dataset = train_set(config, 2 * NUM_ROWS)
    for step in range(2):
        rows = range(step * NUM_ROWS, (step + 1) * NUM_ROWS)
        rows_B = share(torch.tensor(rows))
        batch = share_of_batch(dataset, rows)
        batch = replace(batch, caption_B=rows_B % 3, image_id_B=rows_B % 5)
        task.zero_grad()
        model(batch).loss.backward()
        task.after_step(1.0)
    assert len(task.memory["keys"]) == NUM_ROWS
    return {name: gradient_of(parameter) for name, parameter in task.named_parameters()}


def mlim_step() -> dict[str, Tensor]:
    """Return gradients of MLIM's pre-training, whose rows show images, texts or both, not as many
    of each in every process."""
    config = mlim_config()
    return gradients_of_step(build_mlim(config), share_of_batch(mlim_rows(config), range(14)))


def running_mean_at_validation(folder: Path) -> Tensor:
    """Return the running mean of a batch normalisation after one step of all rows, as validation
    uses it."""
    train = {
        "steps": 1,
        "batch_size": NUM_ROWS,
        "val_every": 1,
        "device": "cpu",
    }
    config = config_of("nlvr2_compare", train=train)
    task = build(config)
    batch = share_of_batch(train_set(config, NUM_ROWS))
    texts = {"config.json": "{}", "tokenizer.json": TOKENIZER.to_json()}
    trainer = Trainer(config.train, folder, task, evaluator_of(task), device=CPU, texts=texts)
    val_loader = eval_loader(
        eval_set(config), batch_size=4, rank=processes.rank(), world=processes.world_size()
    )
    bad_samples = BadSamples(
        folder,
        num_rows=NUM_ROWS,
        max_share=1,
        writes=is_main(),
    )
    trainer.fit(iter([batch]), val_loader, bad_samples)
    return task.get_buffer("compare_head.norm.running_mean")


# Evaluation


def share_of_numbers(task: Any, dataset: Any) -> dict[str, float]:
    """Return the numbers of all processes with n and both ends of their intervals."""
    numbers = numbers_of(
        task,
        dataset,
        5,
        rank=processes.rank(),
        world=processes.world_size(),
    )
    results = dict(numbers)
    for name, interval in to_json(numbers)["certainty"].items():
        for end in ("n", "low", "high"):
            results[f"{name} {end}"] = interval[end]
    return results


def evaluation() -> dict[str, dict[str, float]]:
    """Return the numbers of every task, and of a search with fewer images than processes."""
    results = {}
    masked = build(tiny_config())
    dataset = MaskedPairs([pairs(23)], masked.config, TOKENIZER, training=False)
    results["masked_signal"] = share_of_numbers(masked, dataset)
    for name in EVALUATED:
        task = build(config_of(name))
        results[name] = share_of_numbers(task, eval_set(task.config))
    pair = build(tiny_config(task=PairConfig()))
    dataset = evaluator_of(pair).dataset([item_pairs(23)], pair.config, TOKENIZER)
    results["pair"] = share_of_numbers(pair, dataset)
    task = build(config_of("retrieval"))
    assert isinstance(task, Retrieval)
    dataset = SearchSet([ListSource([searchable()[0]])], task.config, TOKENIZER)
    results["one image"] = share_of_numbers(task, dataset)
    return results


def write_all(folder: Path) -> None:
    """Write what this process computes. Contrast is by slices of two rows."""
    rank = processes.rank()
    tensors = {f"features.{name}": value for name, value in contrast_of_features().items()}
    with mock.patch.object(objectives, "AT_ONCE", 2 * NUM_ROWS):
        for step in (gradients_of_a_step, systems_step, memory_step, drawn_negatives, mlim_step):
            for name, value in step().items():
                tensors[f"{step.__name__}.{name}"] = value
    tensors["running_mean"] = running_mean_at_validation(folder / "run")
    contiguous = {name: value.contiguous() for name, value in tensors.items()}
    save_file(contiguous, folder / f"{rank}.safetensors")
    (folder / f"{rank}.json").write_text(json.dumps(evaluation()))
