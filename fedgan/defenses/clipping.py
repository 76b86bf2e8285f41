"""Clipping: of each update's norm, and of its distance from a centre."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedgan.defenses.base import Defense, PreAggregation, ServerMeans, Verdict
from fedgan.reports import Report
from fedgan.updates import UpdateMatrix


def shrink(sizes: Tensor, bound: float | Tensor) -> Tensor:
    """The factors that bring sizes down to a bound, min(1, bound / size).

    >>> shrink(torch.tensor([0.0, 1.0, 4.0]), 2.0)
    tensor([1.0000, 1.0000, 0.5000])
    """
    return torch.where(sizes > bound, bound / sizes, 1.0)


def middle(values: Tensor) -> Tensor:
    """The median; of an even number, the mean of the two in the middle."""
    return values.quantile(0.5)


def check_positive(name: str, value: float | None) -> None:
    """Raises `ValueError` for an argument that is given and is not a number above 0."""
    if value is not None and not (value > 0 and math.isfinite(value)):
        raise ValueError(f"init_args.{name} is {value}; it must be a number above 0")


class Clip(PreAggregation):
    """Norm clipping: no update is longer than a bound.

    y_i = x_i min(1, c / ||x_i||). Source: Sun et al. 2019, arXiv 1911.07963; the bound by the
    median, which needs no knowledge of the networks, is that of FLAME (Nguyen et al. 2022). Takes
    away what an attacker wins by a long update, and nothing of what it wins by its direction. Any
    n; the median stands f < n / 2. Cost O(n P).

    Args:
        norm: the bound c; null takes the median of this round's norms.

    >>> updates = UpdateMatrix.of(torch.tensor([[3.0, 4.0], [0.3, 0.4]]))
    >>> Clip(norm=1.0)(updates, [], ServerMeans(1, torch.zeros(2))).norms()
    tensor([1.0000, 0.5000], dtype=torch.float64)
    """

    name: ClassVar[str] = "clip"

    def __init__(self, norm: float | None = None) -> None:
        check_positive("norm", norm)
        self.norm = norm

    def __call__(
        self, updates: UpdateMatrix, reports: Sequence[Report], server: ServerMeans
    ) -> UpdateMatrix:
        norms = updates.norms()
        bound = middle(norms) if self.norm is None else self.norm
        return updates.mixed(shrink(norms, bound).diag())


class CenteredClipping(Defense):
    """Centred clipping: the mean of the updates, each drawn towards the last round's aggregate.

    Source: Karimireddy et al. 2021, arXiv 2012.10333. v_0 is this rule's aggregate of the round
    before, 0 in the first; v_{l+1} = v_l + 1/n sum_i (x_i - v_l) min(1, tau / ||x_i - v_l||); the
    aggregate is v_L. One client moves it by no more than L tau / n. Every client counts for 1 / n,
    whatever its number of images. The paper clips momenta; an update of many local steps is taken
    for one here, and tau, which the paper has at 10 to 100 for its gradients, has no canonical
    value for updates: so the default measures it.

    Any n, f < n / 2 where tau is the median's. Cost O(L n P). Scores are distances from v_L.

    Args:
        tau: the radius; null takes the median of this round's distances from v_0, for all L.
        iterations: L; the paper has 1 to 3, and 1 suffices where v_0 is near.

    >>> rows = torch.tensor([[1.0], [2.0], [3.0], [900.0]])
    >>> rule = CenteredClipping(tau=4.0)
    >>> rule(UpdateMatrix.of(rows), [], ServerMeans(1, torch.zeros(1))).aggregate
    tensor([2.5000])
    """

    name: ClassVar[str] = "centered-clipping"

    def __init__(self, tau: float | None = None, iterations: int = 1) -> None:
        check_positive("tau", tau)
        if iterations < 1:
            raise ValueError(f"init_args.iterations is {iterations}; it must be at least 1")
        self.tau = tau
        self.iterations = iterations
        self.centre: Tensor | None = None

    def __call__(
        self, updates: UpdateMatrix, reports: Sequence[Report], server: ServerMeans
    ) -> Verdict:
        n, rows = len(updates), updates.rows
        centre = rows.new_zeros(updates.size) if self.centre is None else self.centre.to(rows)
        factors = torch.zeros(n, dtype=torch.float64)  # v_l = v_0 + sum_i factors_i (x_i - v_0)
        sizes = updates.norms(centre)
        tau = middle(sizes) if self.tau is None else self.tau
        acted = False
        for _ in range(self.iterations):
            kept = shrink(sizes, tau)
            acted |= bool((kept < 1).any())
            factors = factors + (kept - kept.sum() * factors) / n
            moved = updates.weighted_mean(factors)
            self.centre = torch.add(moved, centre, alpha=float(1 - factors.sum()))
            sizes = updates.norms(self.centre)
        return Verdict.of(factors / factors.sum(), sizes, acted=acted, aggregate=self.centre)

    def restart(self) -> None:
        self.centre = None

    def state_dict(self) -> dict[str, Any]:
        return {"centre": None if self.centre is None else self.centre.cpu()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.centre = state["centre"]
