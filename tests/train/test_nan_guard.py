"""Non-finite losses and gradients stop a run before they reach the weights."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from eve_vl.train.bad_samples import BadSamples
from eve_vl.train.step import StepOutput
from eve_vl.train.trainer import Trainer
from eve_vl.utils.errors import SharedError
from tests.train.test_best import CONFIG

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
        return StepOutput(
            loss=self.head(self.blocks[0](self.norm(batch.x_BD))).square().mean(), terms={}
        )

    def validate(self, loader: Iterable[Any]) -> tuple[dict[str, float], dict[str, float]]:
        return {}, {}

    def warnings(self, numbers: Mapping[str, float]) -> list[str]:
        return []

    def comparison(self, numbers: Mapping[str, float]) -> str:
        return ""


def batches(bad: float | None, index: int = 0) -> Iterator[Rows]:
    """Two of a step; one of the steps holds what is not finite, in the first or in the second."""
    for number in range(40):
        x_BD = torch.randn(5, 6, generator=torch.Generator().manual_seed(number))
        if bad is not None and number == 2 * BAD + index:
            x_BD[0, 0] = bad
        yield Rows(x_BD=x_BD, where=tuple(f"{number}:{row}" for row in range(5)))


def trained(
    run: Path, bad: float | None, optimizer: str, index: int = 0, **changes: object
) -> tuple[Trainer, str]:
    """A trainer that has stopped, and what it said."""
    run.mkdir()
    torch.manual_seed(0)
    options = {
        "steps": 12,
        "batch_size": 10,
        "accumulation": 2,
        "log_every": 12,
        "save_every": 12,
        "val_every": 12,
    }
    options |= {
        "weight_decay": 0.1,
        "lr": 0.02,
        "warmup": 0.1,
        "ema_decay": 0.9,
        "optimizer": optimizer,
    } | changes
    net = Net()
    trainer = Trainer(replace(CONFIG, **options), run, net, net, device=CPU, texts={})  # pyright: ignore
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
    return (
        trainer.task.state_dict()
        | state
        | {f"average of {name}": value for name, value in trainer.averages.values.items()}
    )


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "block_muon"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("index", [0, 1])
def test_a_stopped_run_holds_what_was_there_before_the_step(
    tmp_path: Path, monkeypatch, optimizer, bad, index
):
    monkeypatch.setattr("eve_vl.train.parameter_groups.BLOCK_ROWS", 2)  # the block has 4 rows
    trained(tmp_path / "before", None, optimizer, index, save_every=BAD)
    late, said = trained(tmp_path / "late", bad, optimizer, index)
    assert f"loss is not finite at step {BAD} (loss nan" in said
    assert late.step == BAD
    saved = tmp_path / f"before/checkpoints/step_{BAD:08d}"
    found = state_of(late)
    expected = load_file(saved / "live.safetensors") | load_file(saved / "optimizer.safetensors")
    averages = load_file(saved / "model.safetensors")
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    for name, value in averages.items():
        assert torch.equal(
            found[f"average of {name}" if f"average of {name}" in found else name], value
        ), name
    (folder,) = (tmp_path / "late").glob("non_finite_step_*")
    assert folder.name == f"non_finite_step_{BAD:08d}_rank_0"
    assert (folder / "samples.txt").read_text().split("\n") == [
        f"{2 * BAD + index}:{row}" for row in range(5)
    ]
    assert not load_file(folder / "batch.safetensors")["x_BD"].isfinite().all()
    assert_same(load_file(folder / "model.safetensors"), late.task.state_dict())


def test_a_gradient_that_is_not_finite_is_told_from_a_loss(tmp_path: Path):
    class Steep(Net):
        def forward(self, batch: Rows) -> StepOutput:
            loss = super().forward(batch).loss
            return StepOutput(
                loss=loss + (self.head.weight * 0).abs().sqrt().sum(), terms={}
            )  # 0 · ∞

    (tmp_path / "run").mkdir()
    steep = Steep()
    trainer = Trainer(
        replace(CONFIG, steps=2), tmp_path / "run", steep, steep, device=CPU, texts={}
    )
    with pytest.raises(SharedError, match="gradient norm is not finite at step 0"):
        trainer.fit(
            batches(None), [], BadSamples(tmp_path / "run", num_rows=1, max_share=1, writes=True)
        )
