"""Features of past steps as negatives, and contrast of images with images."""

import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from eve_vl.tasks.contrast.memory import CrossBatchMemory
from eve_vl.tasks.retrieval.config import RetrievalConfig
from helpers import tiny_tasks as tiny
from helpers.resumed_runs import assert_resumes_to_the_same
from helpers.twins import tiny_config
from tests.test_objectives import slow_contrastive

ITC: dict[str, Any] = {"itm_weight": 0.0, "rerank": 0, "projection_dim": 8}


def build(**options: Any) -> Any:
    task = RetrievalConfig(**ITC | options)
    return tiny.build(tiny_config(task=task, model={"balance_weight": 0.0})).train()


def batch_of(task: Any, rows: range, captions: dict[int, int] | None = None) -> Any:
    """Rows of as many images; captions: by row, in whose words its caption is."""
    dataset = type(task).dataset(
        [tiny.SOURCES["retrieval"](30)], task.config, tiny.TOKENIZER, training=True
    )
    batch = dataset.collate([dataset[(0, 0, row)] for row in rows])
    return replace(
        batch,
        image_id_B=torch.tensor([*rows]),
        caption_B=torch.tensor([(captions or {}).get(r, r) for r in rows]),
    )


@torch.no_grad()
def test_the_loss_is_that_of_a_loop_over_this_step_and_the_remembered_ones():
    task = build(memory_batches=2, dedup_captions=True)
    steps = [range(4), range(4, 8), range(8, 12), range(6, 14, 2)]  # rows 6, 8 and 10 again
    captions = {12: 9, 10: 5}
    batches = [batch_of(task, rows, captions) for rows in steps]
    features = []
    for batch in batches:
        unimodal = task.contrast.unimodal(task.encoder, batch)
        features.append((unimodal.image_BXd[:, 0], unimodal.text_BXd[:, 0]))
    temperature = task.contrast.features.temperature.item()

    def as_now(side: int, past: int, now: int) -> Tensor:
        """Features of a past step with mean and deviation of the present one, dimension by
        dimension."""
        then, here = (features[step][side].tolist() for step in (past, now))
        columns = []
        for x, y in zip(zip(*then, strict=True), zip(*here, strict=True), strict=True):
            ratio = statistics.pstdev(y) / statistics.pstdev(x)
            columns.append(
                [(value - statistics.mean(x)) * ratio + statistics.mean(y) for value in x]
            )
        return torch.tensor(columns).T

    for step, (batch, (image, text)) in enumerate(zip(batches, features, strict=True)):
        remembered = range(
            max(step - 2, 1), step
        )  # not step 0: it ends before a fifth of all steps
        rows = [row for past in (step, *remembered) for row in steps[past]]
        all_images, all_texts = (
            torch.cat([as_now(side, past, step) for past in (step, *remembered)])
            for side in range(2)
        )
        total = 0.0
        for place, row in enumerate(steps[step]):
            matches = [
                row == other or captions.get(row, row) == captions.get(other, other)
                for other in rows
            ]
            kept = [other for other, is_match in enumerate(matches) if other < 4 or not is_match]
            query, is_match = (
                slice(place, place + 1),
                torch.tensor([[matches[other] for other in kept]]),
            )
            total += slow_contrastive(
                image[query], text[query], all_images[kept], all_texts[kept], is_match, temperature
            )
        assert task(batch).loss.item() == pytest.approx(total / 4, rel=1e-4)
        task(batch)  # a pass without an update, as to time it, leaves no trace
        task.after_step(0.19 + 0.01 * step)
    assert len(task.memory["keys"]) == 8


def gradients(num_micro_batches: int) -> dict[str, Tensor]:
    """Of a step after another one, whose features it knows."""
    task = build(memory_batches=1)
    for rows in (range(12), range(8, 20)):
        task.zero_grad()
        size = 12 // num_micro_batches
        parts = [
            batch_of(task, rows[start : start + size], {19: 8, 13: 12})
            for start in range(0, 12, size)
        ]
        for batch in task.before_step(parts):
            (task(batch).loss / num_micro_batches).backward()
        task.after_step(1.0)
    assert len(task.memory["keys"]) == 12
    return {name: parameter.grad for name, parameter in task.named_parameters()}


def test_a_memory_that_has_begun_goes_on_when_more_steps_are_given():
    memory = CrossBatchMemory(1)
    for value, progress in enumerate((0.1, 0.3, 0.05)):  # of 10 times as many steps at last
        memory.present = {"keys": torch.full((2, 1), value)}
        memory.add_step(progress)
        assert [each.tolist() for each in memory.rows.values()] == (
            [[[value]] * 2] if value else []
        )


def test_accumulation_changes_nothing():
    whole, parts = gradients(1), gradients(2)
    for name, gradient in whole.items():
        torch.testing.assert_close(
            parts[name], gradient, rtol=1e-4, atol=1e-5 * gradient.abs().max().item(), msg=name
        )


def test_a_killed_run_goes_on_bit_for_bit(eve, pretrained, tmp_path: Path, no_report):
    """Its memory lies in checkpoints and, as it is no weight, not in best/."""
    words: tuple[Any, ...] = (
        *(
            "finetune",
            "demo_retrieval",
            "--init",
            pretrained,
            "--data.train",
            "scenes:val",
            "--data.val-samples",
            8,
        ),
        *(
            "--train.steps",
            6,
            "--train.save-every",
            2,
            "--train.val-every",
            6,
            "--train.log-every",
            1,
            "--train.threads",
            1,
        ),
        *(
            "--train.batch-size",
            8,
            "--train.accumulation",
            2,
            "--data.num-workers",
            0,
            "--model.dropout",
            0.1,
        ),
        *(
            "--task.memory-batches",
            3,
            "--train.keep-checkpoints",
            9,
        ),
    )
    assert_resumes_to_the_same(eve, words, tmp_path, saved=4, steps=6)
    one, two = (
        load_file(tmp_path / run / "checkpoints/step_00000006/memory.safetensors")
        for run in ("whole", "killed")
    )
    assert {name: len(each) for name, each in one.items()} == {
        "images": 24,
        "texts": 24,
        "keys": 24,
    }
    assert all(torch.equal(each, two[name]) for name, each in one.items())
    assert load_file(tmp_path / "whole/checkpoints/step_00000002/memory.safetensors")[
        "keys"
    ].shape == (8, 2)
    assert not (tmp_path / "whole/best/memory.safetensors").exists()
    assert build(memory_batches=3).state_dict().keys() == build().state_dict().keys()
