"""Which experts the routers choose, compared with a count token by token."""

from pathlib import Path

import numpy as np
import pytest
import torch

from eve_vl.model.router import Router
from eve_vl.pages.number_formats import percent
from eve_vl.report.page import task_report, write_report
from eve_vl.report.routing import routing_of
from eve_vl.run.loading import load_run
from eve_vl.tasks.masked_signal.task import MaskedSignal
from eve_vl.tasks.report import NUM_SEEN
from helpers.report_page import Page

NUM_PASSES = {"vqa": 1, "nlvr2": 2, "retrieval": 2}  # of each token through the encoder


class ChoiceCounter:
    """Counts the experts of all tokens that pass through a task's routers, one by one."""

    def __init__(self, task: torch.nn.Module):
        self.counts: dict[Router, np.ndarray] = {}
        for module in task.modules():
            if isinstance(module, Router):
                module.register_forward_hook(self.count)

    def count(self, router, inputs, _output) -> None:
        x_SD, rows = inputs
        for x_D, modalities in zip(x_SD, rows.is_modality_2S.T.tolist(), strict=True):
            if modalities == [0, 0]:  # padding that fills a tile
                continue
            modality = int(modalities[1])
            logits_E = router.weight @ (x_D + router.modality_embed[modality])
            counts_ME = self.counts.setdefault(router, np.zeros((2, len(logits_E))))
            counts_ME[modality, logits_E.topk(2).indices] += 1


@pytest.mark.parametrize("name", NUM_PASSES)
@torch.no_grad()
def test_shares_count_all_tokens(finetuned_runs: dict[str, Path], name: str):
    """In evaluation the last block computes [CLS] only; the page counts every token."""
    run = load_run(finetuned_runs[name])
    report = task_report(run)
    batches = list(report.batches(report.dataset(8)))
    routing = routing_of(run.task, batches)
    assert routing.num_rows == 8
    assert not run.task.encoder.computes_all

    counter = ChoiceCounter(run.task)
    run.task.encoder.computes_all = True
    run.task.routers(batches[0])
    num_text = int((~batches[0].is_padding_BT).sum())
    num_image = 8 * (1 + run.config.input.num_patches)
    num_choices = 2 * NUM_PASSES[name]
    for shares_ME, counts_ME in zip(
        routing.shares_ME.values(), counter.counts.values(), strict=True
    ):
        total_M1 = counts_ME.sum(1, keepdims=True)
        assert shares_ME.numpy() == pytest.approx(counts_ME / total_M1, abs=5e-3)
        assert total_M1[:, 0].tolist() == [num_choices * num_image, num_choices * num_text]


def test_page_shows_the_shares_of_masked_rows(pretrained: Path, tmp_path: Path):
    page = Page(write_report(pretrained, tmp_path / "page.html"))
    run = load_run(pretrained)
    assert isinstance(run.task, MaskedSignal)
    report = task_report(run)
    batches = list(report.batches(report.dataset(NUM_SEEN)))
    shares = routing_of(run.task, batches).shares_ME
    assert list(shares) == [2, 3]
    assert f"expert 3, text tokens: {percent(shares[3][1, 3].item())}" in page.text

    counter = ChoiceCounter(run.task)
    with torch.no_grad():
        for batch in batches:
            run.task.encode(batch, keep=True)
            run.task.encode(batch, mask=True)
    for shares_ME, counts_ME in zip(
        shares.values(),
        counter.counts.values(),
        strict=True,
    ):
        share = counts_ME / counts_ME.sum(1, keepdims=True)
        assert shares_ME.numpy() == pytest.approx(share, abs=2e-3)  # near ties may tip over
