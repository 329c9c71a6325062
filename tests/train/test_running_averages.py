"""Running averages of batch normalisations."""

import pytest
import torch
from torch import nn

from eve_vl.train.running_averages import running_averages, running_averages_restored


def test_running_averages_come_back_after_an_error():
    model = nn.Sequential(
        nn.Linear(2, 2),
        nn.BatchNorm1d(2),
        nn.LayerNorm(2),
    )
    with pytest.raises(KeyError), running_averages_restored(model):
        model(torch.randn(8, 2))
        mean, _, num_batches = running_averages(model)
        assert mean.any()
        assert num_batches == 1
        raise KeyError
    values = [buffer.tolist() for buffer in running_averages(model)]
    assert values == [[0, 0], [1, 1], 0]  # mean, variance, number of batches
