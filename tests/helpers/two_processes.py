"""The computations of tasks that tests/helpers/two_process_runs.py does in two processes."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from eve_vl import objectives
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
from helpers import shared_experts
from helpers.mlim import build_mlim, item_pairs, mlim_config, mlim_rows
from helpers.tiny_tasks import (
    TOKENIZER,
    build,
    config_of,
    eval_set,
    numbers_of,
    searchable,
    train_set,
)
from helpers.twins import ListSource, pairs, tiny_config

NUM_ROWS, WORLD = 8, 2
IMAGES = (0, 1, 2, 1, 0, 3, 0, 4)  # captions of one image in both processes
EVALUATED = ("vqa", "nlvr2", "retrieval", "retrieval_merged", "retrieval_itc")


def share(x: Tensor) -> Tensor:
    """This process's rows, all of them without a group."""
    return x.chunk(processes.world_size())[processes.rank()]


def contrast_of_features() -> dict[str, Tensor]:
    """Loss of fixed features, and its gradients, which processes average as DistributedDataParallel
    does."""
    rng = torch.Generator().manual_seed(0)
    image, text = (torch.randn(NUM_ROWS, 6, generator=rng) for _ in range(2))
    temperature = torch.tensor(0.3, requires_grad=True)
    image_C = torch.tensor(IMAGES)
    inputs = [share(x).clone().requires_grad_() for x in (image, text)]
    image_BD, text_BD = (F.normalize(x, dim=1) for x in inputs)
    image_CD, text_CD = processes.gather_rows(image_BD), processes.gather_rows(text_BD)
    assert torch.equal(processes.gather_rows(share(image_C)), image_C)
    is_match_BC = share(image_C)[:, None] == image_C
    targets_BC = objectives.even_targets(is_match_BC)
    loss = objectives.contrastive(image_BD, text_BD, image_CD, text_CD, targets_BC, temperature)
    loss.backward()
    world = processes.world_size()
    assert temperature.grad is not None
    return {
        "loss": processes.sum_over_processes(loss.detach()) / world,
        "temperature": processes.sum_over_processes(temperature.grad) / world,
        "image": processes.gather_rows(_gradient(inputs[0])) / world,
        "text": processes.gather_rows(_gradient(inputs[1])) / world,
    }


def _gradient(x: Tensor) -> Tensor:
    assert x.grad is not None
    return x.grad


def gradients_of_a_step() -> dict[str, Tensor]:
    """Gradients of the whole retrieval task by contrast, as training takes them."""
    config = config_of("retrieval_itc", model={"balance_weight": 0.5})
    dataset = train_set(config, NUM_ROWS)
    dataset.sources[0].rows[5] = dataset.sources[0][2]  # pyright: ignore[reportAttributeAccessIssue]
    task = build(config)
    model = DistributedDataParallel(task) if processes.world_size() > 1 else task
    rows = share(torch.arange(NUM_ROWS)).tolist()
    samples = [dataset[(0, 0, row)] for row in rows]
    model(dataset.collate(samples)).loss.backward()
    return {name: _gradient(parameter) for name, parameter in task.named_parameters()}


def systems_task() -> tuple[Any, MaskedPairs]:
    """Pre-training by contrast, its singular values and matching with negatives of all processes,
    and its rows."""
    settings = ContrastMatchConfig(
        mlm_weight=0.0,
        itc_masked_image=True,
        itc_targets="diagonal",
        itm_negatives="global",
        svd_form="sigma1",
    )
    config = tiny_config(task=settings, model={"balance_weight": 0.0})
    return build(config).train(), MaskedPairs([pairs(NUM_ROWS)], config, TOKENIZER, training=True)


def systems_step() -> dict[str, Tensor]:
    """Gradients of a step of it."""
    task, dataset = systems_task()
    model = DistributedDataParallel(task) if processes.world_size() > 1 else task
    rows = [dataset[(0, 0, row)] for row in share(torch.arange(NUM_ROWS)).tolist()]
    model(dataset.collate(rows)).loss.backward()
    return {name: _gradient(parameter) for name, parameter in task.named_parameters()}


@torch.no_grad()
def drawn_negatives() -> dict[str, Tensor]:
    """Which row's image and which row's text are the wrong partners of each row of all processes,
    in several epochs."""
    task, dataset = systems_task()
    found: dict[str, list[Tensor]] = {"images": [], "texts": []}
    for epoch in range(6):
        of_all: Any = dataset.collate([dataset[(epoch, 0, row)] for row in range(NUM_ROWS)])
        batch = dataset.collate(
            [dataset[(epoch, 0, row)] for row in share(torch.arange(NUM_ROWS)).tolist()]
        )
        features = task.contrast.unimodal(task.encoder, batch)
        (wrong,) = task.contrast.fetch_negatives(
            task.encoder,
            [batch],
            features.image_BXd,
            features.text_BXd,
            task.contrast.features.temperature,
        )
        shown = [
            (wrong.partners.images_BCHW, of_all.images_BCHW),
            (wrong.partners.ids_BT, of_all.ids_BT),
        ]
        for name, (partner_B, row_C) in zip(found, shown, strict=True):
            cut_C = row_C[..., : partner_B.shape[-1]]
            padded_B = F.pad(partner_B, (0, cut_C.shape[-1] - partner_B.shape[-1]))
            is_it_BC = (padded_B[:, None] == cut_C).flatten(2).all(2)
            assert is_it_BC.any(1).all()
            found[name].append(processes.gather_rows(is_it_BC.int().argmax(1)))
    return {name: torch.stack(each) for name, each in found.items()}


def memory_step() -> dict[str, Tensor]:
    """Gradients of a step with features of the step before it."""
    settings = RetrievalConfig(itm_weight=0.0, rerank=0, projection_dim=8, memory_batches=1)
    task: Any = build(tiny_config(task=settings, model={"balance_weight": 0.0})).train()
    model = DistributedDataParallel(task) if processes.world_size() > 1 else task
    dataset = type(task).dataset([pairs(2 * NUM_ROWS)], task.config, TOKENIZER, training=True)
    for step in range(2):
        rows = share(torch.arange(NUM_ROWS) + step * NUM_ROWS)
        batch = dataset.collate([dataset[(0, 0, row)] for row in rows.tolist()])
        task.zero_grad()
        batch = replace(
            batch, caption_B=rows % 3, image_id_B=rows % 5
        )  # some in both processes, some remembered
        model(batch).loss.backward()
        task.after_step(1.0)
    assert len(task.memory["keys"]) == NUM_ROWS
    return {name: _gradient(parameter) for name, parameter in task.named_parameters()}


def mlim_step() -> dict[str, Tensor]:
    """Gradients of MLIM's pre-training, whose rows show images, texts or both, not as many of each
    in every process."""
    task, rows = build_mlim(mlim_config()), mlim_rows(mlim_config())
    model = DistributedDataParallel(task) if processes.world_size() > 1 else task
    batch = rows.collate([rows[0, 0, row] for row in share(torch.arange(14)).tolist()])
    model(batch).loss.backward()
    return {name: _gradient(parameter) for name, parameter in task.named_parameters()}


def running_mean_at_validation(folder: Path) -> Tensor:
    """What a head that standardises has seen after one step of all rows, when it is validated."""
    config = config_of(
        "nlvr2_compare", train={"steps": 1, "batch_size": NUM_ROWS, "val_every": 1, "device": "cpu"}
    )
    task = build(config)
    dataset = train_set(config, NUM_ROWS)
    batch = dataset.collate(
        [dataset[(0, 0, row)] for row in share(torch.arange(NUM_ROWS)).tolist()]
    )
    texts = {"config.json": "{}", "tokenizer.json": TOKENIZER.to_json()}
    trainer = Trainer(
        config.train, folder, task, evaluator_of(task), device=torch.device("cpu"), texts=texts
    )
    val_loader = eval_loader(
        eval_set(config), batch_size=4, rank=processes.rank(), world=processes.world_size()
    )
    bad_samples = BadSamples(folder, num_rows=NUM_ROWS, max_share=1, writes=is_main())
    trainer.fit(iter([batch]), val_loader, bad_samples)
    return task.get_buffer("compare_head.norm.running_mean")


def evaluation() -> dict[str, dict[str, float]]:
    """The numbers of every task with their intervals, and of a search with fewer images than
    processes."""
    rank, world = processes.rank(), processes.world_size()
    found = {}
    masked = build(tiny_config())
    dataset = MaskedPairs([pairs(23)], masked.config, TOKENIZER, training=False)
    found["masked_signal"] = numbers_of(masked, dataset, 5, rank=rank, world=world)
    for name in EVALUATED:
        task = build(config_of(name))
        found[name] = numbers_of(task, eval_set(task.config), 5, rank=rank, world=world)
    task = build(tiny_config(task=PairConfig()))
    found["pair"] = numbers_of(
        task,
        evaluator_of(task).dataset([item_pairs(23)], task.config, TOKENIZER),
        5,
        rank=rank,
        world=world,
    )
    task = build(config_of("retrieval"))
    assert isinstance(task, Retrieval)
    one = SearchSet([ListSource([searchable()[0]])], task.config, TOKENIZER)
    found["one image"] = numbers_of(task, one, 5, rank=rank, world=world)
    return {name: numbers | ends_of(numbers) for name, numbers in found.items()}


def ends_of(numbers: dict[str, float]) -> dict[str, float]:
    """n and both ends of the interval of each number that knows them, by name."""
    known = to_json(numbers)["certainty"]
    return {
        f"{name} {end}": each[end] for name, each in known.items() for end in ("n", "low", "high")
    }


def write_all(folder: Path) -> None:
    """Write what this process found."""
    rank = processes.rank()
    tensors = {f"features.{name}": value for name, value in contrast_of_features().items()}
    with mock.patch.object(objectives, "AT_ONCE", 2 * NUM_ROWS):  # contrast by slices of two rows
        for step in (gradients_of_a_step, systems_step, memory_step, drawn_negatives, mlim_step):
            tensors |= {f"{step.__name__}.{name}": value for name, value in step().items()}
    tensors |= shared_experts.steps()
    tensors["running_mean"] = running_mean_at_validation(folder / "run")
    save_file(
        {name: value.contiguous() for name, value in tensors.items()},
        folder / f"{rank}.safetensors",
    )
    (folder / f"{rank}.json").write_text(json.dumps(evaluation()))
