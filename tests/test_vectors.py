"""Networks to vectors and back."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedgan.vectors import flatten, shared_tensors, unflatten


@settings(max_examples=25)
@given(st.lists(st.integers(1, 6), min_size=2, max_size=4), st.integers(0, 99))
def test_flatten_and_unflatten_are_inverse(widths, seed):
    torch.manual_seed(seed)

    def build():
        layers = [nn.Linear(a, b) for a, b in pairwise(widths)]
        return nn.Sequential(*layers, nn.BatchNorm1d(widths[-1])), nn.Linear(1, 2)

    one, other = build(), build()
    vector = flatten(*one)
    assert vector.numel() == sum(t.numel() for t in shared_tensors(*one))
    unflatten(vector, *other)
    assert torch.equal(flatten(*other), vector)
    for a, b in zip(one, other, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_flatten_copies():
    layer = nn.Linear(2, 2)
    flatten(layer).zero_()
    assert layer.weight.abs().sum() > 0


def test_running_statistics_travel_and_counters_stay():
    norm, other = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    norm(torch.randn(8, 3))
    unflatten(flatten(norm), other)
    assert torch.equal(other.running_mean, norm.running_mean)
    assert torch.equal(other.running_var, norm.running_var)
    assert norm.num_batches_tracked == 1
    assert other.num_batches_tracked == 0


@pytest.mark.parametrize("surplus", [-1, 1])
def test_a_vector_of_another_length_is_refused(surplus):
    layer = nn.Linear(2, 2)
    vector = torch.cat([flatten(layer), torch.zeros(1)])[: 6 + surplus]
    with pytest.raises((ValueError, RuntimeError)):
        unflatten(vector, layer)
