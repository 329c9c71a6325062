"""Models that share weights and compute differently; the original stays unchanged."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from eve_vl.model.submodules import replace_submodules
from helpers.twins import randomize


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
        self.rest = nn.ModuleList(
            [nn.Sequential(nn.Linear(4, 4), nn.Tanh()), nn.Sequential(nn.Linear(4, 4), nn.Tanh())]
        )
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


X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
NAMES = ["first", "rest.0", "rest.1.0", "norm", "rest.0.1"]


@pytest.mark.parametrize("name", NAMES)
def test_a_twin_computes_what_a_deep_copy_with_another_part_does(name):
    module = tree()
    parent, _, last = name.rpartition(".")
    changed = copy.deepcopy(module)
    holder = changed.get_submodule(parent)
    setattr(holder, last, Double(changed.get_submodule(name)))
    parts = dict(module.named_modules())
    before = module(X)
    twin = replace_submodules(module, {name: Double(module.get_submodule(name))})
    assert torch.equal(twin(X), changed(X))
    assert not torch.equal(twin(X), before)
    assert torch.equal(module(X), before)
    assert dict(module.named_modules()) == parts


@pytest.mark.parametrize("name", NAMES)
def test_a_twin_shares_all_weights(name):
    module = tree()
    twin = replace_submodules(module, {name: Double(module.get_submodule(name))})
    tensor_ids = {id(tensor) for tensor in (*module.parameters(), *module.buffers())}
    assert {id(tensor) for tensor in (*twin.parameters(), *twin.buffers())} == tensor_ids
    twin(X).sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
    module.zero_grad()
    with torch.no_grad():
        module.rest[1][0].bias.add_(1)  # pyright: ignore
    assert torch.equal(replace_submodules(module, {})(X), module(X))


def test_several_parts_at_once_also_of_one_branch():
    module = tree()
    names = ["first", "rest.0.0", "rest.1.0", "rest.1.1"]
    twin = replace_submodules(module, {name: Double(module.get_submodule(name)) for name in names})
    one_by_one = module
    for name in names:
        one_by_one = replace_submodules(one_by_one, {name: Double(one_by_one.get_submodule(name))})
    assert torch.equal(twin(X), one_by_one(X))
    assert twin.norm is module.norm
    assert twin.rest is not module.rest


def test_attributes_and_the_mode_of_a_twin_are_its_own():
    module = tree()
    twin = replace_submodules(module, {"first": Double(module.first)})
    assert not twin.training
    twin.sign = -1
    twin.added = nn.Linear(2, 2)
    assert module.sign == 1
    assert not hasattr(module, "added")
    assert isinstance(twin, Tree)


def test_a_name_that_is_not_there_is_an_error():
    with pytest.raises(AttributeError):
        replace_submodules(tree(), {"rest.2.0": nn.Identity()})


def test_eight_threads_make_and_use_twins_of_one_module():
    module = tree()
    jobs = [(NAMES[number % len(NAMES)], torch.randn(3, 4)) for number in range(64)]

    def both(job: tuple[str, Tensor]) -> tuple[Tensor, Tensor]:
        name, x = job
        return replace_submodules(module, {name: Double(module.get_submodule(name))})(
            x
        ).detach(), module(x).detach()

    one_by_one = [both(job) for job in jobs]
    with ThreadPoolExecutor(8) as pool:
        at_once = list(pool.map(both, jobs))
    for twin, alone in zip(at_once, one_by_one, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(twin, alone, strict=True))
