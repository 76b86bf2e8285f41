"""The server's own optimiser: what a rule has joined is taken for a gradient, not for a step."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedgan.defenses.base import ServerMeans, ServerStep
from fedgan.defenses.clipping import check_positive


class FedAvgM(ServerStep):
    """FedAvgM: momentum on the server.

    Source: Hsu et al. 2019, arXiv 1909.06335. With x_t the aggregate of round t, m_0 = 0: m_t =
    beta1 m_{t-1} + x_t; the step is eta m_t. As in the paper there is no dampening: in the long
    run an update counts for eta / (1 - beta1) of its size, 10 with the defaults. No defence by
    itself: it stands whatever the rule before it stands, though what slips through stays for some
    1 / (1 - beta1) rounds. Any n; cost O(P); remembers m [P].

    Args:
        eta: the server's learning rate; 1 in the paper.
        beta1: momentum, in [0, 1); 0.9 in the paper.

    >>> step, server = FedAvgM(beta1=0.5), ServerMeans(1, torch.zeros(1))
    >>> [step(torch.ones(1), server).item() for _ in range(3)]
    [1.0, 1.5, 1.75]
    """

    name: ClassVar[str] = "fedavgm"

    def __init__(self, eta: float = 1.0, beta1: float = 0.9) -> None:
        check_positive("eta", eta)
        _check_beta("beta1", beta1)
        self.eta = eta
        self.beta1 = beta1
        self.m: Tensor | None = None

    def __call__(self, aggregate: Tensor, server: ServerMeans) -> Tensor:
        before = torch.zeros_like(aggregate) if self.m is None else self.m.to(aggregate)
        self.m = self.beta1 * before + aggregate
        return self.eta * self.m

    def restart(self) -> None:
        self.m = None

    def state_dict(self) -> dict[str, Any]:
        return {"m": None if self.m is None else self.m.cpu()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.m = state["m"]


class Adaptive(ServerStep):
    """Adaptive steps on the server (Reddi et al. 2021, arXiv 2003.00295, algorithm 2).

    With x_t the aggregate of round t: m_t = beta1 m_{t-1} + (1 - beta1) x_t, v_t as the subclass
    says, and the step is eta m_t / (sqrt(v_t) + tau). m_0 = 0, v_0 = tau^2, no bias correction, as
    in the paper.

    Args:
        eta: the server's learning rate: about the largest change of a parameter in a round.
        beta1: momentum, in [0, 1).
        beta2: decay of the second moment, in [0, 1).
        tau: adaptivity, above 0; small is more adaptive.
    """

    def __init__(
        self, eta: float = 0.01, beta1: float = 0.9, beta2: float = 0.99, tau: float = 0.001
    ) -> None:
        check_positive("eta", eta)
        _check_beta("beta1", beta1)
        _check_beta("beta2", beta2)
        check_positive("tau", tau)
        self.eta = eta
        self.beta1 = beta1
        self.beta2 = beta2
        self.tau = tau
        self.m: Tensor | None = None
        self.v: Tensor | None = None

    @abstractmethod
    def second_moment(self, v: Tensor, square: Tensor) -> Tensor:
        """v_t from v_{t-1} and x_t^2."""

    def __call__(self, aggregate: Tensor, server: ServerMeans) -> Tensor:
        if self.m is None or self.v is None:
            self.m = torch.zeros_like(aggregate)
            self.v = torch.full_like(aggregate, self.tau**2, dtype=torch.float64)
        self.m = self.beta1 * self.m.to(aggregate) + (1 - self.beta1) * aggregate
        # in float64, or the square of a large step would be infinite in all later rounds
        v = self.second_moment(self.v.to(aggregate.device), aggregate.double().square())
        self.v = v
        return (self.eta * self.m / (v.sqrt() + self.tau)).to(aggregate)

    def restart(self) -> None:
        self.m = self.v = None

    def state_dict(self) -> dict[str, Any]:
        return {
            "m": None if self.m is None else self.m.cpu(),
            "v": None if self.v is None else self.v.cpu(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.m, self.v = state["m"], state["v"]


class FedAdam(Adaptive):
    """FedAdam: Adam on the server.

    Source: Reddi et al. 2021, arXiv 2003.00295, algorithm 2. With x_t the aggregate of round t:
    m_t = beta1 m_{t-1} + (1 - beta1) x_t, v_t = beta2 v_{t-1} + (1 - beta2) x_t^2; the step is
    eta m_t / (sqrt(v_t) + tau). m_0 = 0, v_0 = tau^2, no bias correction, as in the paper. No
    defence by itself: it stands whatever the rule before it stands; and the size of the aggregate
    hardly matters, only its direction. Any n; cost O(P); remembers m and v [P].

    Args:
        eta: the server's learning rate: about the largest change of a parameter in a round. The
            paper tunes it between 0.001 and 10; there is no canonical value.
        beta1: momentum, in [0, 1); 0.9 in the paper.
        beta2: decay of the second moment, in [0, 1); 0.99 in the paper.
        tau: adaptivity, above 0; 0.001 in the paper.

    >>> step = FedAdam(eta=1.0, beta1=0.0, beta2=0.0, tau=1.0)
    >>> step(torch.tensor([3.0, -1.0]), ServerMeans(1, torch.zeros(2)))
    tensor([ 0.7500, -0.5000])
    """

    name: ClassVar[str] = "fedadam"

    def second_moment(self, v: Tensor, square: Tensor) -> Tensor:
        return self.beta2 * v + (1 - self.beta2) * square


class FedYogi(Adaptive):
    """FedYogi: Yogi on the server, whose second moment grows and falls by no more than a square.

    Source: Reddi et al. 2021, arXiv 2003.00295, algorithm 2. With x_t the aggregate of round t:
    m_t = beta1 m_{t-1} + (1 - beta1) x_t, v_t = v_{t-1} - (1 - beta2) x_t^2 sign(v_{t-1} - x_t^2);
    the step is eta m_t / (sqrt(v_t) + tau). m_0 = 0, v_0 = tau^2, no bias correction, as in the
    paper. No defence by itself, like FedAdam. Any n; cost O(P); remembers m and v [P].

    Args:
        eta: the server's learning rate: about the largest change of a parameter in a round. The
            paper tunes it between 0.001 and 10; there is no canonical value.
        beta1: momentum, in [0, 1); 0.9 in the paper.
        beta2: decay of the second moment, in [0, 1); 0.99 in the paper.
        tau: adaptivity, above 0; 0.001 in the paper.

    >>> step = FedYogi(eta=1.0, beta1=0.0, beta2=0.0, tau=1.0)
    >>> step(torch.tensor([0.0, 2.0]), ServerMeans(1, torch.zeros(2))).round(decimals=4)
    tensor([0.0000, 0.6180])
    """

    name: ClassVar[str] = "fedyogi"

    def second_moment(self, v: Tensor, square: Tensor) -> Tensor:
        return v - (1 - self.beta2) * square * (v - square).sign()


def _check_beta(name: str, beta: float) -> None:
    if not 0 <= beta < 1:
        raise ValueError(f"init_args.{name} is {beta}; it must be in [0, 1)")
