"""Models that share weights and compute differently; the original stays unchanged."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from eve_vl.model.submodules import replace_submodules
from helpers.random_weights import randomize


class Double(nn.Module):
    """Twice what another module returns."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.inner(x)


class Tree(nn.Module):
    """Parts on three levels, in a list and in a sequence, with a buffer and a plain attribute."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.rest = nn.ModuleList()
        for _ in range(2):
            self.rest.append(nn.Sequential(nn.Linear(4, 4), nn.Tanh()))
        self.norm = nn.BatchNorm1d(4)
        self.sign = 1

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for part in self.rest:
            x = part(x)
        return self.sign * self.norm(x)


def tree() -> Tree:
    module = Tree().eval()
    randomize(module, 1)
    return module


def doubled(module: nn.Module, *names: str) -> nn.Module:
    """Return a twin whose named parts are doubled."""
    return replace_submodules(module, {name: Double(module.get_submodule(name)) for name in names})


X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
NAMES = ["first", "rest.0", "rest.1.0", "norm", "rest.0.1"]


@pytest.mark.parametrize("name", NAMES)
def test_a_twin_computes_what_a_deep_copy_does_and_shares_all_weights(name):
    module = tree()
    parent, _, last = name.rpartition(".")
    changed = copy.deepcopy(module)
    setattr(changed.get_submodule(parent), last, Double(changed.get_submodule(name)))
    parts = dict(module.named_modules())
    before = module(X)
    twin = doubled(module, name)
    assert torch.equal(twin(X), changed(X))
    assert not torch.equal(twin(X), before)
    assert torch.equal(module(X), before)
    assert dict(module.named_modules()) == parts

    weights = {id(tensor) for tensor in (*module.parameters(), *module.buffers())}
    assert {id(tensor) for tensor in (*twin.parameters(), *twin.buffers())} == weights
    twin(X).sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_several_parts_at_once_also_of_one_branch():
    module = tree()
    names = ["first", "rest.0.0", "rest.1.0", "rest.1.1"]
    twin = doubled(module, *names)
    one_by_one = module
    for name in names:
        one_by_one = doubled(one_by_one, name)
    assert torch.equal(twin(X), one_by_one(X))
    assert twin.norm is module.norm
    assert twin.rest is not module.rest


def test_attributes_and_the_mode_of_a_twin_are_its_own():
    module = tree()
    twin = doubled(module, "first")
    assert isinstance(twin, Tree)
    assert not twin.training
    twin.sign = -1
    twin.added = nn.Linear(2, 2)
    assert module.sign == 1
    assert not hasattr(module, "added")
    with pytest.raises(AttributeError):
        replace_submodules(module, {"rest.2.0": nn.Identity()})


def test_eight_threads_make_and_use_twins_of_one_module():
    module = tree()
    jobs = [(NAMES[number % len(NAMES)], torch.randn(3, 4)) for number in range(64)]

    def compute(job: tuple[str, Tensor]) -> Tensor:
        name, x = job
        return torch.cat([doubled(module, name)(x), module(x)]).detach()

    expected = [compute(job) for job in jobs]
    with ThreadPoolExecutor(8) as pool:
        outputs = list(pool.map(compute, jobs))
    assert torch.equal(torch.stack(outputs), torch.stack(expected))
