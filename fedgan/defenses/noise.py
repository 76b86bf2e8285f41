"""Noise and votes: Gaussian noise on the aggregate, weak differential privacy, CRFL, and RLR."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedgan.defenses.base import Defense, ServerMeans, ServerStep, Verdict
from fedgan.defenses.clipping import check_positive, middle, shrink
from fedgan.defenses.draws import add_noise
from fedgan.errors import UserError
from fedgan.reports import Report
from fedgan.updates import UpdateMatrix

SHARE = 1e-3
"""Noise as a share of the norm it is measured by, where none is given: FLAME's."""


class Noise(ServerStep):
    """Gaussian noise on the aggregate, against what hides in small changes.

    y = x + N(0, sigma^2 I). The last step of weak differential privacy (Sun et al. 2019, arXiv
    1911.07963). The noise's norm is about sigma sqrt(P): what a network bears is to be tried. The
    same bytes on any number of ranks and any device. Any n; cost O(P).

    Args:
        sigma: standard deviation in each coordinate; the papers have 0.001 to 0.025 for small
            classifiers.

    >>> step = Noise(sigma=2.0)
    >>> step(torch.zeros(10_000), ServerMeans(1, torch.zeros(10_000))).std().round().item()
    2.0
    """

    name: ClassVar[str] = "noise"

    def __init__(self, sigma: float = 0.001) -> None:
        _check_sigma(sigma)
        self.sigma = sigma

    def __call__(self, aggregate: Tensor, server: ServerMeans) -> Tensor:
        return add_noise(aggregate, self.sigma, server.rng(self.name))


class WeakDP(Defense):
    """Weak differential privacy: clipped updates, their mean, and a little noise.

    Source: Sun et al. 2019, arXiv 1911.07963. x = sum_i w_i x_i min(1, c / ||x_i||) + N(0, sigma^2
    I), w_i FedAvg's weights: too little noise for a guarantee of privacy, and often enough against
    a backdoor. `[clip, fedavg, noise]` in one. Any n; the median stands f < n / 2. Cost O(n P).
    Scores are norms.

    Args:
        norm: the bound c; null takes the median of this round's norms.
        sigma: standard deviation of the noise; the paper has 0.025. null takes 0.001 of the bound.

    >>> rule, updates = WeakDP(norm=1.0, sigma=0.0), UpdateMatrix.of(torch.tensor([[4.0], [0.5]]))
    >>> rule(updates, [], ServerMeans(1, torch.zeros(1))).aggregate
    tensor([0.7500])
    """

    name: ClassVar[str] = "weak-dp"

    def __init__(self, norm: float | None = None, sigma: float | None = None) -> None:
        check_positive("norm", norm)
        _check_sigma(sigma)
        self.norm = norm
        self.sigma = sigma

    def __call__(
        self, updates: UpdateMatrix, reports: Sequence[Report], server: ServerMeans
    ) -> Verdict:
        norms = updates.norms()
        bound = float(middle(norms)) if self.norm is None else self.norm
        counted = updates.weights * shrink(norms, bound)
        sigma = SHARE * bound if self.sigma is None else self.sigma
        aggregate = add_noise(updates.weighted_mean(counted), sigma, server.rng(self.name))
        return Verdict.of(counted / counted.sum(), norms, aggregate=aggregate)


class CRFL(ServerStep):
    """CRFL: the new global parameters are clipped to a norm, then get Gaussian noise.

    Source: Xie et al. 2021, arXiv 2106.08283, algorithm 1. With w the global parameters and x the
    aggregate: w' = (w + x) min(1, rho / ||w + x||) + N(0, sigma^2 I); what is returned is w' - w,
    which leads there. The paper leaves the noise of the last round to its smoothed prediction, and
    certifies that by a vote over many noisy copies of the classifier. That certificate is for
    classifiers and has no counterpart for a generator: here the training is CRFL's and nothing is
    certified. Any n; cost O(P). It knows no attackers, so it stands whatever rho and sigma drown.

    Args:
        rho: the bound on the norm of all shared parameters; the paper has 15 for its MNIST
            network, or one that grows with the rounds. null takes twice the norm that the first
            round started from, which is remembered; where that is 0, nothing is clipped.
        sigma: standard deviation of the noise in each coordinate; 0.01 in the paper.

    >>> server = ServerMeans(1, torch.tensor([3.0, 3.0]))
    >>> CRFL(rho=5.0, sigma=0.0)(torch.tensor([3.0, 5.0]), server)
    tensor([0., 1.])
    """

    name: ClassVar[str] = "crfl"

    def __init__(self, rho: float | None = None, sigma: float = 0.01) -> None:
        check_positive("rho", rho)
        _check_sigma(sigma)
        self.rho = rho
        self.sigma = sigma
        self.first: float | None = None

    def __call__(self, aggregate: Tensor, server: ServerMeans) -> Tensor:
        if self.first is None:
            self.first = _norm(server.parameters)
        rho = 2 * self.first or math.inf if self.rho is None else self.rho
        wanted = server.parameters.double() + aggregate.double()
        norm = _norm(wanted)
        if norm > rho:
            wanted *= rho / norm
        step = (wanted - server.parameters.double()).to(aggregate.dtype)
        return add_noise(step, self.sigma, server.rng(self.name))

    def state_dict(self) -> dict[str, Any]:
        return {"first": self.first}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.first = state["first"]


class RobustLearningRate(Defense):
    """Robust learning rate: where too few clients agree, the step goes the other way.

    Source: Ozdayi et al. 2021, arXiv 2007.03767. In each coordinate, x = s sum_i w_i x_i, w_i
    FedAvg's weights, where s = 1 if |sum_i sign(x_i)| >= theta and -1 otherwise: the learning rate
    of a coordinate that only attackers care for is turned round. Needs theta > f, and benign
    clients that agree: n - 2f >= theta. Cost O(n P).

    Args:
        theta: votes that must be left over; null takes 0.4 n, the paper's 4 of 10 clients.

    >>> updates = UpdateMatrix.of(torch.tensor([[1.0, 1.0], [1.0, -2.0], [4.0, 4.0]]))
    >>> RobustLearningRate(theta=2)(updates, [], ServerMeans(1, torch.zeros(2))).aggregate
    tensor([ 2., -1.])
    """

    name: ClassVar[str] = "rlr"

    def __init__(self, theta: int | None = None) -> None:
        if theta is not None and theta < 1:
            raise ValueError(f"init_args.theta is {theta}; it must be at least 1")
        self.theta = theta

    def check(self, n: int) -> None:
        if self.theta is not None and self.theta > n:
            raise UserError(
                f"defense: rlr: theta is {self.theta}, more votes than the {n} clients in a round"
            )

    def fewest(self) -> int:
        return self.theta or 1  # with fewer, no vote could be won, and every step would be turned

    def __call__(
        self, updates: UpdateMatrix, reports: Sequence[Report], server: ServerMeans
    ) -> Verdict:
        theta = 0.4 * len(updates) if self.theta is None else self.theta
        votes = updates.columns(lambda block: block.sign().sum(0).abs())
        turned = votes < theta
        mean = updates.weighted_mean(updates.weights)
        aggregate = torch.where(turned, -mean, mean)
        return Verdict.of(updates.weights, acted=bool(turned.any()), aggregate=aggregate)


def _norm(vector: Tensor) -> float:
    return float(torch.linalg.vector_norm(vector, dtype=torch.float64))


def _check_sigma(sigma: float | None) -> None:
    if sigma is not None and not 0 <= sigma < math.inf:
        raise ValueError(f"init_args.sigma is {sigma}; it must be at least 0")
