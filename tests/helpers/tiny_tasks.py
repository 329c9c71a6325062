"""Tiny fine-tuning tasks with their rows."""

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from eve_vl import objectives
from eve_vl.config import Config, TaskConfig
from eve_vl.data.kinds.captions import ImageText
from eve_vl.data.kinds.labels import LabeledExample
from eve_vl.data.loader import eval_loader
from eve_vl.data.row_dataset import RowDataset
from eve_vl.metrics.matches import Relevance
from eve_vl.model.tokens import Tokens
from eve_vl.run.loading import build_untrained
from eve_vl.tasks.evaluator import evaluator_class, evaluator_of
from eve_vl.tasks.nlvr2.config import NLVR2Config
from eve_vl.tasks.nlvr2.task import NLVR2
from eve_vl.tasks.retrieval.config import RetrievalConfig
from eve_vl.tasks.retrieval.gallery import Gallery
from eve_vl.tasks.retrieval.gathering import gather_gallery
from eve_vl.tasks.retrieval.search_set import SearchSet
from eve_vl.tasks.retrieval.task import Retrieval
from eve_vl.tasks.task import Sizes, Task, task_class
from eve_vl.tasks.vqa.config import VQAConfig
from eve_vl.tasks.vqa.task import VQA
from eve_vl.train.evaluation_batches import evaluation_batches
from helpers.tiny_config import tiny_config
from helpers.tiny_rows import (
    ANSWERS,
    ListSource,
    noise,
    pairs,
    questions,
    statements,
    tiny_tokenizer,
)

TOKENIZER = tiny_tokenizer()
ANSWER_LIST = (*ANSWERS, "no idea", "A Blue!", "3")  # a list need not be in normal form
SECTIONS: dict[str, TaskConfig] = {
    "vqa": VQAConfig(),
    "nlvr2": NLVR2Config(),
    "nlvr2_paired": NLVR2Config(head="paired"),
    "nlvr2_compare": NLVR2Config(head="compare"),
    "retrieval": RetrievalConfig(rerank=4),
    "retrieval_merged": RetrievalConfig(rerank=4, dedup_captions=True, itm_batchnorm=True),
    "retrieval_itc": RetrievalConfig(itm_weight=0.0, rerank=0, projection_dim=8),
}
NLVR2_LAYERS = {
    "concat": "concat_head.3",
    "compare": "compare_head.classify.3",
    "paired": "paired_head.classify",
}
"""The last layer of each head."""
CPU = torch.device("cpu")
SIZES = Sizes(
    vocab_size=TOKENIZER.vocab_size,
    mask_id=TOKENIZER.mask_id,
    labels=ANSWER_LIST,
)


def config_of(name: str, **sections: dict) -> Config:
    return tiny_config(task=SECTIONS[name], **sections)


# Tasks


def build(config: Config, *, noise: float = 0.1) -> Task[Any]:
    """Return a task in evaluation mode with its initial weights, the same every time.

    All but the temperature get noise, so that no weight is 0 or 1.
    """
    with torch.random.fork_rng():
        torch.manual_seed(5)
        task = build_untrained(config, SIZES)
        with torch.no_grad():
            for name, parameter in task.named_parameters():
                if not name.endswith("temperature"):
                    parameter.add_(torch.randn(parameter.shape) * noise)
    task.eval()
    if noise and isinstance(task, VQA | NLVR2):
        _centre(task)
    return task


def _centre(task: VQA | NLVR2) -> None:
    """Take the mean of some logits away, so that not all rows get the same verdict."""
    if isinstance(task, VQA):
        last = task.answer_head[-1]
    else:
        last = task.get_submodule(NLVR2_LAYERS[task.settings.head])
    assert isinstance(last, torch.nn.Linear)
    batch = rows_of(eval_set(task.config, 16), 16)
    with torch.no_grad():
        last.bias.sub_(task.predict(batch)[0].mean(0))


def retrieval(**task: Any) -> Retrieval:
    """Return a retrieval task; task: fields of its section."""
    fields: dict[str, Any] = {"rerank": 4} | task
    config = tiny_config(task=RetrievalConfig(**fields), model={"balance_weight": 0.5})
    built = build(config)
    assert isinstance(built, Retrieval)
    return built


# Rows


def searchable() -> ListSource[ImageText]:
    """Return eleven rows of nine images.

    Some texts are true of several images, some images have many texts. The number that tells texts
    apart comes first: cut to the same tokens, two texts would tie up to rounding.
    """
    rows = []
    for row in range(11):
        pair = pairs(11)[row]
        captions = [" ".join(reversed(text.split())) for text in pair.captions]
        rows.append(replace(pair, captions=tuple(captions)))
    rows[3] = replace(rows[3], image=rows[0].image, where=rows[0].where)
    captions = ("a circle", "a third one", "a fourth")
    rows[4] = replace(
        rows[4],
        image=rows[0].image,
        where=rows[0].where,
        captions=captions,
    )
    rows[6] = replace(rows[6], captions=("a circle",))
    rows[7] = replace(rows[7], captions=rows[1].captions)
    return ListSource(rows)


def labelled(count: int) -> ListSource[LabeledExample]:
    """Return noise images with texts and one label each."""
    rows = []
    for row in range(count):
        example = LabeledExample(
            image=noise(count, row),
            text=f"a circle {row}",
            labels=(ANSWERS[row % len(ANSWERS)],),
            where=f"labelled:{row}",
        )
        rows.append(example)
    return ListSource(rows)


SOURCES: dict[str, Callable[[int], ListSource[Any]]] = {
    "vqa": questions,
    "nlvr2": statements,
    "classification": labelled,
}
"""Rows of tasks that do not read pairs."""


def train_set(
    config: Config, count: int, source: Callable[[int], ListSource[Any]] | None = None
) -> RowDataset:
    """Return rows to train a task on. source: rows of tasks that `SOURCES` lacks."""
    rows = (source or SOURCES.get(config.task.name, pairs))(count)
    return task_class(type(config.task)).dataset([rows], config, TOKENIZER, training=True)


def eval_set(config: Config, count: int = 23) -> Any:
    if isinstance(config.task, RetrievalConfig):
        source = searchable()
    else:
        source = SOURCES[config.task.name](count)
    return evaluator_class(type(config.task)).dataset([source], config, TOKENIZER)


def rows_of(dataset: Any, rows: int | Iterable[int], source: int = 0) -> Any:
    """Return rows of a source as one batch; rows: their numbers, or how many of the first."""
    if isinstance(rows, int):
        rows = range(rows)
    return dataset.collate([dataset[(0, source, row)] for row in rows])


# Evaluation


def gallery_of(task: Retrieval, dataset: SearchSet) -> Gallery:
    return gather_gallery(
        task,
        eval_loader(
            dataset,
            batch_size=4,
            rank=0,
            world=1,
        ),
    )


def paired_gallery(image_Id: Tensor, text_Nd: Tensor) -> Gallery:
    """Return features of images, of which the first texts are the only captions, one each."""
    num = len(image_Id)
    rows = torch.arange(num)
    return Gallery(
        image_Id=image_Id,
        text_Nd=text_Nd,
        text_T=rows,
        ids=[rows[:1]] * num,
        lengths=[],
        owner_I=torch.zeros_like(rows),
        pixels={},
        relevance=Relevance.from_pairs(rows, rows, num, num),
    )


def numbers_of(
    task: Task[Any],
    dataset: Any,
    batch_size: int,
    *,
    rank: int = 0,
    world: int = 1,
    skipped: list[Any] | None = None,
) -> dict[str, float]:
    """Return the numbers of evaluation, in float32.

    skipped: where to list rows that cannot be used; None: there must be none.
    """
    loader = eval_loader(
        dataset,
        batch_size=batch_size,
        rank=rank,
        world=world,
    )
    with evaluation_batches(task, loader, CPU, torch.float32, skipped) as batches:
        return evaluator_of(task).evaluate_with_rows(batches).numbers


def shuffled(dataset: Any, batch_size: int, seed: int) -> Iterator[Any]:
    """Yield evaluation batches in another order, with other batch-mates.

    A search keeps images and texts apart: they differ in the second number of a position.
    """
    positions = [position for batch in dataset.eval_batches(1, 0, 1) for position in batch]
    random.Random(seed).shuffle(positions)
    for kind in sorted({position[1] for position in positions}):
        samples = [dataset[position] for position in positions if position[1] == kind]
        for start in range(0, len(samples), batch_size):
            yield dataset.collate(samples[start : start + batch_size])


def watch_matching(
    task: Any,
    batch: Any,
    monkeypatch: Any,
    see: Callable[[Tokens, Tokens], tuple[Any, Any]],
) -> tuple:
    """Return what a forward pass gives to matching: what `see` returns of images and texts, and the
    labels of the pairs."""
    seen: list[Any] = []
    match = task.contrast.match
    matching = objectives.matching

    def watched(encoder, image, text, **parts):
        seen.extend(see(image, text))
        return match(encoder, image, text, **parts)

    def labelled(logits, is_match):
        seen.append(is_match)
        return matching(logits, is_match)

    monkeypatch.setattr(task.contrast, "match", watched)
    monkeypatch.setattr(objectives, "matching", labelled)
    task(batch)
    return tuple(seen)
