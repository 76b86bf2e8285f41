"""Networks of the server's own, run with the parameters that a client has handed in."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import nn

from fedgan.server import Critic
from fedgan.vectors import flatten


class Logit(nn.Module):
    """x to w(y) . tanh(x) + b: a discriminator whose gradient is known."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 4 * 4))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, images, labels):
        return (self.weight[labels] * images.flatten(1).tanh()).sum(1) + self.bias


def test_a_critic_is_the_gradient_of_each_logit_under_the_parameters_it_is_given():
    own, theirs = Logit(), Logit()
    critic = Critic(copy.deepcopy(own), start=3)
    images, labels = torch.randn(5, 1, 4, 4), torch.tensor([0, 1, 1, 0, 1])
    found = critic(torch.cat([torch.full((3,), torch.nan), flatten(theirs)]), images, labels)
    slope = 1 - np.tanh(images.numpy()) ** 2
    expected = theirs.weight.detach().numpy()[labels].reshape(5, 1, 4, 4) * slope
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)
    assert not found.requires_grad
    with torch.no_grad():  # as a defence is called in
        again = critic(torch.cat([torch.zeros(3), flatten(theirs)]), images, labels)
    assert torch.equal(again, found)
