"""Metrics of masked signal modelling against slow loops, for any batching and order."""

import copy
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from eve_vl.config import Config
from eve_vl.data.masked_batches import PairBatch
from eve_vl.data.row_dataset import eval_positions
from eve_vl.metrics import intervals
from eve_vl.metrics.intervals import to_json
from eve_vl.model.tokens import Tokens
from eve_vl.tasks.evaluator import evaluator_of
from eve_vl.tasks.masked_signal.dataset import MaskedPairs
from eve_vl.tasks.masked_signal.evaluation import Sums, visible_means
from eve_vl.tasks.masked_signal.task import MaskedSignal
from helpers.twins import ListSource, pairs, tiny_config, tiny_tokenizer
from tests.tasks.test_masked_signal import VOCAB, batch_of, build, patches_of, samples


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def eval_dataset(config: Config, source: ListSource) -> MaskedPairs:
    return MaskedPairs([source], config, tiny_tokenizer(), training=False)


def eval_batches(
    config: Config, size: int, order: Sequence[int] | None = None
) -> Iterable[PairBatch]:
    dataset = eval_dataset(config, pairs(10))
    positions = eval_positions([10], 10)
    positions = positions if order is None else [positions[i] for i in order]
    for start in range(0, 10, size):
        yield PairBatch.collate(
            [dataset[position] for position in positions[start : start + size]], 0
        )


def ends_of(numbers: dict[str, float]) -> dict[str, float]:
    """n and both ends of the interval of each number."""
    return {
        f"{name} {end}": each[end]
        for name, each in to_json(numbers)["certainty"].items()
        for end in ("n", "low", "high")
    }


def eval_task(**changes: object) -> MaskedSignal:
    """A task that guesses among a few frequent tokens only, so that it is right now and then."""
    tokenizer = tiny_tokenizer()
    task = build(tiny_config(task=changes), tokenizer.vocab_size, tokenizer.mask_id)
    if task.settings.mlm_weight:
        targets = Counter(
            token
            for batch in eval_batches(task.config, 10)
            for token in batch.ids_BT[batch.is_masked_BT].tolist()
        )
        with torch.no_grad():
            task.token_head.fc2.bias.fill_(-30).index_fill_(
                0, torch.tensor([t for t, _ in targets.most_common(4)]), 0.0
            )
    return task


@pytest.mark.parametrize("joint", [False, True])
def test_evaluation_depends_neither_on_batch_size_nor_on_order(joint):
    task = eval_task(joint_masking=joint)
    numbers = evaluator_of(task).evaluate(eval_batches(task.config, 10))
    assert set(numbers) == {
        *("mlm_acc", "mlm_acc_wrong_image", "mlm_acc_unigram", "mlm_loss"),
        *("mim_mse", "mim_mse_wrong_caption", "mim_mse_mean_baseline", "mim_mse_image_mean"),
    }
    assert numbers == evaluator_of(task).evaluate(eval_batches(task.config, 10))
    for size, order in [(1, None), (3, None), (4, [3, 9, 0, 1, 7, 5, 2, 8, 6, 4])]:
        again = evaluator_of(task).evaluate(eval_batches(task.config, size, order))
        assert again == pytest.approx(numbers, rel=1e-5)
        assert again.keys() == to_json(again)["certainty"].keys()
        assert ends_of(again) == pytest.approx(ends_of(numbers), rel=1e-5, abs=1e-9)
    assert not any(parameter.grad is not None for parameter in task.parameters())


@pytest.mark.parametrize("normalize", [True, False])
def test_evaluation_numbers_equal_a_slow_loop(normalize):
    task = eval_task(normalize_targets=normalize)
    numbers = evaluator_of(task).evaluate(eval_batches(task.config, 4))
    found: dict[str, list[float]] = {name: [] for name in numbers}
    targets: Counter[int] = Counter()
    for batch in eval_batches(task.config, 1):
        assert batch.wrong is not None
        masked = batch.ids_BT[batch.is_masked_BT]
        targets.update(masked.tolist())
        patches = patches_of(batch)
        with torch.no_grad():
            logits = task.predict_tokens(task.encode(batch, mask=True), batch)
            other = replace(batch, images_BCHW=batch.wrong.images_BCHW)
            wrong_logits = task.predict_tokens(task.encode(other, mask=True), batch)
            predicted = task.predict_pixels(task.encode(batch, keep=True), batch)[0].numpy()
            text = batch.with_text_of(batch.wrong)
            wrong_predicted = task.predict_pixels(task.encode(text, keep=True), text)[0].numpy()
        found["mlm_acc"] += (logits.argmax(-1) == masked).tolist()
        found["mlm_acc_wrong_image"] += (wrong_logits.argmax(-1) == masked).tolist()
        found["mlm_loss"] += torch.nn.functional.cross_entropy(
            logits, masked, reduction="none"
        ).tolist()
        array, keep = patches[0].numpy(), batch.keep_BK[0].tolist()
        for row, position in enumerate(batch.hidden_BM[0].tolist()):
            patch = array[position]
            mean, std = patch.mean(), np.sqrt(patch.var(ddof=1) + 1e-6)
            near, whole = slow_guesses(array, keep, position)
            target = (patch - mean) / std if normalize else patch
            if normalize:
                near = whole = 0.0
            found["mim_mse"] += ((predicted[row] - target) ** 2).tolist()
            found["mim_mse_wrong_caption"] += ((wrong_predicted[row] - target) ** 2).tolist()
            found["mim_mse_mean_baseline"] += ((near - target) ** 2).tolist()
            found["mim_mse_image_mean"] += ((whole - target) ** 2).tolist()
    found["mlm_acc_unigram"] = [max(targets.values()) / sum(targets.values())]
    assert numbers == pytest.approx(
        {name: float(np.mean(values)) for name, values in found.items()}, rel=1e-4
    )


def slow_guesses(
    patches_PX: np.ndarray, keep: Sequence[int], position: int
) -> tuple[np.ndarray, np.ndarray]:
    """One RGB colour for a hidden patch: mean of visible neighbours, or of all visible patches; and
    the latter."""
    side = math.isqrt(len(patches_PX))
    pixels = patches_PX.reshape(len(patches_PX), 3, -1)
    whole = np.mean([pixels[p].mean(1) for p in keep], axis=0)
    row, column = divmod(position, side)
    near = [
        pixels[p].mean(1) for p in keep if max(abs(p // side - row), abs(p % side - column)) == 1
    ]
    color = np.mean(near, axis=0) if near else whole
    return np.repeat(color, pixels.shape[2]), np.repeat(whole, pixels.shape[2])


@pytest.mark.parametrize("num_kept", [1, 2, 6, 15])
def test_visible_means_against_a_loop(num_kept):
    patches = torch.randn(5, 16, 12)
    order = torch.stack([torch.randperm(16) for _ in range(5)])
    keep, hidden = order[:, :num_kept], order[:, num_kept:]
    near, whole = visible_means(patches, keep, hidden)
    for b in range(5):
        for m, position in enumerate(hidden[b].tolist()):
            slow_near, slow_whole = slow_guesses(patches[b].numpy(), keep[b].tolist(), position)
            np.testing.assert_allclose(near[b, m].numpy(), slow_near, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(whole[b, m].numpy(), slow_whole, rtol=1e-4, atol=1e-5)


def test_sums_of_several_processes_give_the_numbers_of_one():
    logits, targets = torch.randn(9, VOCAB), torch.randint(0, 4, (9,))
    predicted, target = torch.randn(6, 2, 5), torch.randn(6, 2, 5)
    where, row_of = [f"rows:{row}" for row in range(6)], torch.tensor([0, 0, 0, 1, 2, 3, 4, 4, 5])

    def collect(tokens: slice, rows: slice) -> Sums:
        sums = Sums()
        for name in ("mlm_acc", "mlm_acc_wrong_image"):
            sums.add_tokens(
                name, logits[tokens], targets[tokens], row_of[tokens] - rows.start, where[rows]
            )
        for name in ("mim_mse", "mim_mse_wrong_caption"):
            sums.add_pixels(name, predicted[rows], target[rows], where[rows])
        return sums

    whole = Sums.whole([collect(slice(0, 9), slice(0, 6))])
    parts = Sums.whole(
        [collect(slice(5, 9), slice(3, 6)), collect(slice(0, 5), slice(0, 3)), Sums()]
    )
    assert parts.result() == pytest.approx(whole.result(), rel=1e-6)
    assert to_json(parts.result())["certainty"].keys() == whole.result().keys()
    assert ends_of(parts.result()) == pytest.approx(ends_of(whole.result()), rel=1e-6)
    assert whole.result()["mlm_acc_unigram"] == pytest.approx(
        max(Counter(targets.tolist()).values()) / 9
    )
    right = (logits.argmax(1) == targets).tolist()
    assert {row: each.tolist() for row, each in whole.by_row("mlm_acc").items()} == {
        name: [sum(right[i] for i in range(9) if row_of[i] == row), int((row_of == row).sum())]
        for row, name in enumerate(where)
    }
    assert {name: each["n"] for name, each in to_json(whole.result())["certainty"].items()} == {
        **dict.fromkeys(("mlm_acc", "mlm_acc_wrong_image", "mlm_acc_unigram", "mlm_loss"), 9),
        **dict.fromkeys(("mim_mse", "mim_mse_wrong_caption"), 12),  # patches
    }


def test_masked_rows_of_an_image_are_one_group_and_are_compared_with_the_wrong_partner():
    names, row_M = ["1 | x", "2 | x", "3 | y", "4 | z"], torch.tensor([0, 0, 1, 2, 2, 2, 3])
    right_M, wrong_M = torch.tensor([1, 1, 0, 1, 0, 1, 0]), torch.tensor([1, 0, 0, 0, 0, 1, 1])
    sums = Sums()
    for name, values in (
        ("mlm_acc", right_M),
        ("mlm_acc_wrong_image", wrong_M),
        ("mlm_accurate", wrong_M),
    ):
        sums.add(name, names, row_M, values)
    sums.add("mlm_acc_of_fewer", names, row_M[:-1], wrong_M[:-1])
    found = sums.result()["mlm_acc"]
    assert isinstance(found, intervals.MeasuredValue)
    expected = intervals.mean(right_M.tolist(), ["xxxyyyz"[place] for place in range(7)])
    assert isinstance(expected, intervals.MeasuredValue)
    assert [*found.versus] == ["mlm_acc_wrong_image"]
    gain = intervals.difference(np.array([1, 0, 1, -1]) / 7, list("xxyz"), is_share=True)
    assert isinstance(gain, intervals.MeasuredValue)
    assert found.versus["mlm_acc_wrong_image"] == pytest.approx([gain.low, gain.high])
    assert (found, found.n, found.groups) == (4 / 7, 7, 3)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_a_row_may_come_in_several_batches():
    sums = Sums()
    for values in ([1.0, 0.0], [0.0, 1.0]):
        sums.add("mlm_acc", ["a", "b", "c"], torch.tensor([0, 1]), torch.tensor(values))
        sums.add("mlm_acc", ["b"], torch.tensor([0]), torch.tensor([1.0]))
    assert {name: each.tolist() for name, each in sums.by_row("mlm_acc").items()} == {
        "a": [1, 2],
        "b": [3, 4],
    }


def test_guesses_without_a_model_are_on_the_device_of_the_patches():
    """The default device is another one here, and tensors of two devices do not mix."""
    patches, keep, hidden = torch.randn(1, 4, 3), torch.tensor([[0, 3]]), torch.tensor([[1, 2]])
    expected = visible_means(patches, keep, hidden)
    with torch.device("meta"):
        found = visible_means(patches, keep, hidden)
    assert all(map(torch.equal, found, expected))


def test_wrong_partners_change_the_numbers_that_they_should():
    task = eval_task()
    batches = list(eval_batches(task.config, 5))
    numbers = evaluator_of(task).evaluate(batches)
    own = [replace(batch, wrong=copy.copy(batch)) for batch in batches]
    same = evaluator_of(task).evaluate(own)
    assert same["mlm_acc_wrong_image"] == same["mlm_acc"] == numbers["mlm_acc"]
    assert same["mim_mse_wrong_caption"] == pytest.approx(same["mim_mse"])
    assert numbers["mim_mse_wrong_caption"] != pytest.approx(numbers["mim_mse"], rel=1e-5)


def test_evaluation_encodes_each_modality_with_its_own_and_with_the_wrong_partner(monkeypatch):
    task = eval_task()
    (batch,) = eval_batches(task.config, 10)
    assert batch.wrong is not None
    calls: list[tuple[Tensor, Tensor, bool, bool]] = []
    embed = MaskedSignal.embed

    def spy(
        self: MaskedSignal, batch: PairBatch, *, keep: bool = False, mask: bool = False
    ) -> tuple[Tokens | None, Tokens | None]:
        calls.append((patches_of(batch), batch.ids_BT, keep, mask))
        return embed(self, batch, keep=keep, mask=mask)

    monkeypatch.setattr(MaskedSignal, "embed", spy)
    evaluator_of(task).evaluate([batch])
    own, wrong = patches_of(batch), patches_of(batch.wrong)
    expected = [
        (own, batch.ids_BT, False, True),
        (wrong, batch.ids_BT, False, True),
        (own, batch.ids_BT, True, False),
        (own, batch.wrong.ids_BT, True, False),
    ]
    assert len(calls) == 4
    for call, wanted in zip(calls, expected, strict=True):
        torch.testing.assert_close(call, wanted)


@pytest.mark.parametrize(
    ("off", "module", "term"), [("mim", "pixel_decoder", "mim"), ("mlm", "token_head", "mlm")]
)
def test_weight_zero_leaves_the_pass_and_its_module_out(off, module, term):
    task = build(tiny_config(task={f"{off}_weight": 0.0}))
    assert not hasattr(task, module)
    output = task(batch_of(samples()))
    assert term not in output.terms
    output.loss.backward()
    assert all(
        parameter.grad is not None
        for parameter in task.encoder.get_submodule("blocks").parameters()
    )
    task = eval_task(**{f"{off}_weight": 0.0})
    numbers = evaluator_of(task).evaluate(eval_batches(task.config, 4))
    assert numbers
    assert not any(name.startswith(term) for name in numbers)
