"""Random generators continue where a checkpoint was saved."""

import random

import numpy as np
import pytest
import torch

from eve_vl.train.random_state import get_rng_state, set_rng_state


def draw() -> list[float]:
    return [
        torch.rand(1).item(),
        np.random.rand(),
        random.random(),
        random.gauss(0, 1),
    ]


@pytest.mark.parametrize("num_gauss", [0, 1])
def test_restored_generators_draw_the_same_numbers(num_gauss):
    """Python's makes two normal numbers at once and keeps one; NumPy's is in the midst of its
    keys."""
    random.seed(1)
    np.random.rand(7)
    for _ in range(num_gauss):
        random.gauss(0, 1)
    states = get_rng_state()
    assert "cuda" not in states
    expected = [draw() for _ in range(3)]
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    set_rng_state(states)
    assert [draw() for _ in range(3)] == expected


def test_generator_of_a_gpu_is_restored_only_where_there_is_one(monkeypatch):
    gpu_state = torch.tensor([1, 2], dtype=torch.uint8)
    restored = []
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: gpu_state)
    monkeypatch.setattr(torch.cuda, "set_rng_state", restored.append)
    states = get_rng_state()
    set_rng_state(states | {"cuda": gpu_state})
    assert not restored
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert get_rng_state()["cuda"] is gpu_state
    set_rng_state(states | {"cuda": gpu_state})
    assert restored == [gpu_state]
    set_rng_state(states)
    assert len(restored) == 1
