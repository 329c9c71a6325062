"""Values that are not finite: asked each step or every few steps, what is found is what was there before them."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_train_best import CONFIG
from torch import Tensor, nn

from eve_vl.train import StepOutput
from eve_vl.train.log import BadSamples, read_log
from eve_vl.train.optim import set_found_inf
from eve_vl.train.trainer import Trainer
from eve_vl.utils.errors import SharedError

CPU = torch.device("cpu")
BAD = 6  # the step, counted from 0


@dataclass(kw_only=True)
class Rows:
    """A batch of states."""

    x_BD: Tensor
    where: tuple[str, ...]
    skipped: tuple = ()

    def to(self, device: torch.device) -> "Rows":
        return self


class Net(nn.Module):
    """Parameters of every kind, averages over batches, and a loss that takes what it is given."""

    main_metric: str | None = None
    main_loss: str | None = None

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(6, 4)])
        self.norm = nn.BatchNorm1d(6)
        self.head = nn.Linear(4, 1)

    def forward(self, batch: Rows) -> StepOutput:
        return StepOutput(loss=self.head(self.blocks[0](self.norm(batch.x_BD))).square().mean(), terms={})

    def evaluate(self, loader: Iterable[Any]) -> dict[str, float]:
        return {}

    def warnings(self, numbers: Mapping[str, float]) -> list[str]:
        return []

    def comparison(self, numbers: Mapping[str, float]) -> str:
        return ""

    def log_samples(self, batch: Any) -> Mapping[str, Any]:
        return {}


def batches(bad: float | None, index: int = 0) -> Iterator[Rows]:
    """Two of a step; one of the steps holds what is not finite, in the first or in the second."""
    for number in range(40):
        x_BD = torch.randn(5, 6, generator=torch.Generator().manual_seed(number))
        if bad is not None and number == 2 * BAD + index:
            x_BD[0, 0] = bad
        yield Rows(x_BD=x_BD, where=tuple(f"{number}:{row}" for row in range(5)))


def trained(run: Path, every: int, bad: float | None, optimizer: str, index: int = 0, **changes: object) -> tuple[Trainer, str]:
    """A trainer that has stopped, and what it said."""
    run.mkdir()
    torch.manual_seed(0)
    options = {"steps": 12, "batch_size": 10, "accumulation": 2, "log_every": 12, "save_every": 12, "val_every": 12}
    options |= {"weight_decay": 0.1, "lr": 0.02, "warmup": 0.1, "ema_decay": 0.9, "optimizer": optimizer} | changes
    net = Net()
    trainer = Trainer(replace(CONFIG, **options), run, net, net, device=CPU, texts={})  # pyright: ignore
    trainer.finite.every = every
    try:
        trainer.fit(batches(bad, index), [], BadSamples(run, num_rows=1, max_share=1, writes=True))
    except SharedError as error:
        return trainer, str(error)
    return trainer, ""


def state_of(trainer: Trainer) -> dict[str, Tensor]:
    """All that a step changes."""
    state = {
        f"{name}.{key}": value
        for name, parameter in trainer.task.named_parameters()
        for key, value in trainer.optimizer.state[parameter].items()
    }
    return trainer.task.state_dict() | state | {f"average of {name}": value for name, value in trainer.averages.values.items()}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_asking_rarely_changes_nothing_of_a_run_that_goes_well(tmp_path: Path, optimizer):
    each, rarely = (trained(tmp_path / f"{every}", every, None, optimizer)[0] for every in (1, 5))
    one, other = state_of(each), state_of(rarely)
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=1e-5, atol=1e-7)
    numbers = [read_log(tmp_path / every)[0] for every in ("1", "5")]
    assert numbers[0]["loss"] == pytest.approx(numbers[1]["loss"], rel=1e-5)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("index", [0, 1])
def test_what_is_found_late_is_what_was_there_before_the_step(tmp_path: Path, optimizer, bad, index):
    trained(tmp_path / "before", 100, None, optimizer, index, save_every=BAD)
    late, said = trained(tmp_path / "late", 100, bad, optimizer, index)
    assert f"loss is not finite at step {BAD} (loss nan" in said
    assert late.step == 12  # six more steps were made, to no avail
    saved = tmp_path / f"before/checkpoints/step_{BAD:08d}"
    found = state_of(late)
    expected = load_file(saved / "live.safetensors") | load_file(saved / "optimizer.safetensors")
    averages = load_file(saved / "model.safetensors")
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    for name, value in averages.items():
        assert torch.equal(found[f"average of {name}" if f"average of {name}" in found else name], value), name
    (folder,) = (tmp_path / "late").glob("non_finite_step_*")
    assert folder.name == f"non_finite_step_{BAD:08d}_rank_0"
    assert (folder / "samples.txt").read_text().split("\n") == [f"{2 * BAD + index}:{row}" for row in range(5)]
    assert not load_file(folder / "batch.safetensors")["x_BD"].isfinite().all()
    assert_same(load_file(folder / "model.safetensors"), late.task.state_dict())


@pytest.mark.parametrize("every", [1, 4, 100])
def test_what_is_written_is_what_was_there_before_the_step(tmp_path: Path, every):
    trained(tmp_path / "before", every, None, "adamw", save_every=BAD, ema_decay=0.0)
    trained(tmp_path / "run", every, float("nan"), "adamw", ema_decay=0.0)
    (folder,) = (tmp_path / "run").glob("non_finite_step_*")
    saved = tmp_path / f"before/checkpoints/step_{BAD:08d}/model.safetensors"
    assert_same(load_file(folder / "model.safetensors"), load_file(saved))


@pytest.mark.parametrize(("every", "log_every", "asked"), [(1, 12, 6), (4, 12, 7), (100, 3, 9), (100, 8, 8)])
def test_it_is_asked_in_time(tmp_path: Path, every, log_every, asked):
    """At the fourth step, before a row of the log; in each step before the update."""
    trainer, said = trained(tmp_path / "run", every, float("nan"), "adamw", log_every=log_every)
    assert f"step {BAD}" in said
    assert trainer.step == asked
    assert all(row["step"] <= BAD for row in read_log(tmp_path / "run"))


def test_a_gradient_that_is_not_finite_is_told_from_a_loss(tmp_path: Path):
    class Steep(Net):
        def forward(self, batch: Rows) -> StepOutput:
            loss = super().forward(batch).loss
            return StepOutput(loss=loss + (self.head.weight * 0).abs().sqrt().sum(), terms={})  # 0 · ∞

    (tmp_path / "run").mkdir()
    steep = Steep()
    trainer = Trainer(replace(CONFIG, steps=2), tmp_path / "run", steep, steep, device=CPU, texts={})
    with pytest.raises(SharedError, match="gradient norm is not finite at step 0"):
        trainer.fit(batches(None), [], BadSamples(tmp_path / "run", num_rows=1, max_share=1, writes=True))


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_withheld_updates_change_nothing_and_allowed_ones_all(tmp_path: Path, kind):
    trainer, _ = trained(tmp_path / "run", 1, None, kind)
    before = {name: value.clone() for name, value in state_of(trainer).items()}
    for parameter in trainer.task.parameters():
        parameter.grad = torch.full_like(parameter, float("nan"))
    for group in trainer.optimizer.param_groups:
        group["lr"] = 0.1
    set_found_inf(trainer.optimizer, allowed=torch.tensor(False))
    trainer.optimizer.step()
    trainer.averages.update(3, allowed=torch.tensor(False))
    assert_same(before, state_of(trainer))
    for parameter in trainer.task.parameters():
        parameter.grad = torch.ones_like(parameter)
    set_found_inf(trainer.optimizer, allowed=torch.tensor(True))
    trainer.optimizer.step()
    trainer.averages.update(3, allowed=torch.tensor(True))
    after = state_of(trainer)
    assert {name for name in after if torch.equal(after[name], before[name])} == {
        f"norm.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")
    }
