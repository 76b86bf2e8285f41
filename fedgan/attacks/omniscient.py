"""Attacks made of the benign clients' updates, which only the simulation can see: worst cases."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from statistics import NormalDist
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedgan.attacks.model_poisoning import norm_of
from fedgan.attacks.updates import (
    AttackView,
    OmniscientAttack,
    UpdateAttack,
    plain_mean,
    spread,
)
from fedgan.updates import UpdateMatrix


class ALittleIsEnough(OmniscientAttack):
    """Shifts each coordinate as far as the spread of the benign ones still hides it.

    Source: Baruch et al. 2019, arXiv 1902.06156, algorithm 3. x'_j = mu_j - z sigma_j, with mean
    and standard deviation of the benign updates. z_max is the standard normal quantile of
    (n - f - s) / (n - f), with s = floor(n / 2 + 1) - f benign clients that must be farther out
    than the attackers for these to pass for the majority, n usable clients and f attackers. Few
    attackers have no room in it: z_max is exactly 0, and the benign mean is sent, which is no
    attack, for f = 2 and every even n, and for f = 1 and every odd n; for f = 1 and every even n
    from 4 it is below 0, and the shift goes to the other side. A run warns of both; give z there.
    Where s is below 1 or n is 2 the quantile is infinite, and that of b / (b + 1) or 1 / (b + 1) is
    taken, b = n - f.

    Args:
        z: null takes z_max; it must be given where that is 0 or below.
        sample_std: divide by b - 1 (as PyTorch's std does) instead of b.
        seen: `benign` is omniscient; `colluders` is the paper's own attacker, who takes mean and
            deviation of the attackers' honest updates, and f of 1 then shifts nothing.

    Raises:
        ValueError: for a z that is no number.
    """

    name: ClassVar[str] = "alie"

    def __init__(
        self,
        z: float | None = None,
        sample_std: bool = False,
        seen: Literal["benign", "colluders"] = "benign",
    ) -> None:
        if z is not None and not math.isfinite(z):
            raise ValueError(f"init_args.z is {z}; it must be a number")
        self.z = z
        self.sample_std = sample_std
        self.seen = seen

    def doubt(self, n: int, f: int, before: Sequence[UpdateAttack] = ()) -> str | None:
        if self.seen == "colluders" and f == 1:
            return "one colluder has no spread to hide in: it sends its own update"
        if self.z is not None or f >= n or z_max(n, f) > 0:
            return None
        z, whose = z_max(n, f), "benign" if self.seen == "benign" else "colluders'"
        what = f"sends the {whose} mean" if z == 0 else f"shifts the {whose} mean the other way"
        return f"z_max is {z:.2f} for n={n}, f={f}: it {what}; give init_args.z"

    def forge(self, benign: UpdateMatrix, view: AttackView) -> Tensor:
        z = z_max(view.n, len(view.attackers)) if self.z is None else self.z
        colluders = view.omniscient.colluders
        seen = benign if self.seen == "benign" or colluders is None else colluders
        mean, deviation = plain_mean(seen), spread(seen, int(self.sample_std))
        return (mean.double() - z * deviation.double()).to(mean.dtype)


def z_max(n: int, f: int) -> float:
    """How many standard deviations f of n clients can shift a coordinate; see `ALittleIsEnough`.

    >>> round(z_max(50, 24), 4)
    1.4261
    """
    benign = n - f
    farther = n // 2 + 1 - f
    share = (benign - farther) / benign
    share = min(max(share, 1 / (benign + 1)), benign / (benign + 1))
    return NormalDist().inv_cdf(share)


class InnerProductManipulation(OmniscientAttack):
    """The benign mean turned round: the inner product with the true direction becomes negative.

    Source: Xie et al. 2019, arXiv 1903.03936. x' = -epsilon mu, mu the mean of the benign updates.
    A plain mean turns round for epsilon > (n - f) / f; a small epsilon is for robust rules, which
    take a short vector for a benign one.

    Args:
        epsilon: above 0; 0.5 is the paper's small one.

    Raises:
        ValueError: for an epsilon that is no positive number.
    """

    name: ClassVar[str] = "ipm"

    def __init__(self, epsilon: float = 0.5) -> None:
        if not (epsilon > 0 and math.isfinite(epsilon)):
            raise ValueError(f"init_args.epsilon is {epsilon}; it must be a number above 0")
        self.epsilon = epsilon

    def forge(self, benign: UpdateMatrix, view: AttackView) -> Tensor:
        return -self.epsilon * plain_mean(benign)


class _Farthest(OmniscientAttack):
    """mu + gamma p, with the largest gamma that keeps it as near as benign updates are.

    The paper halves its way to gamma; here it is the root of a quadratic in inner products:
    |mu + gamma p - x_i|^2 = gamma^2 |p|^2 + 2 gamma <p, mu - x_i> + |mu - x_i|^2.
    """

    def __init__(self, direction: Literal["unit", "std", "sign"] = "std") -> None:
        self.direction = direction

    def forge(self, benign: UpdateMatrix, view: AttackView) -> Tensor:
        mean = plain_mean(benign)
        push = self._push(benign, mean)
        away = benign.norms(mean).square()
        along = benign.inner(push).flatten()
        slope = along.mean() - along  # <p, mu - x_i>
        length = push.double().square().sum().item()
        gamma = 0.0
        if length > 0 and len(benign) > 1:
            gamma = self._gamma(length, slope, away, benign.distances().square())
        return (mean.double() + gamma * push.double()).to(mean.dtype)

    def _push(self, benign: UpdateMatrix, mean: Tensor) -> Tensor:
        """The direction p, [P]."""
        if self.direction == "std":
            return -spread(benign)
        if self.direction == "sign":
            return -mean.sign()
        return mean / -max(norm_of(mean), 1e-30)

    @abstractmethod
    def _gamma(self, length: float, slope: Tensor, away: Tensor, squares: Tensor) -> float:
        """From |p|^2, <p, mu - x_i> [b], |mu - x_i|^2 [b] and |x_i - x_j|^2 [b, b]."""


class MinMax(_Farthest):
    """As far out as the two benign clients that are farthest apart are from each other.

    Source: Shejwalkar and Houmansadr, NDSS 2021, "Manipulating the Byzantine". x' = mu + gamma p,
    mu the mean of the benign updates x_i, for the largest gamma with
    max_i |x' - x_i| <= max_ij |x_i - x_j|.

    Args:
        direction: p: `unit`, -mu / |mu|; `std`, minus the benign updates' standard deviation (of
            the population) in each coordinate; `sign`, -sign(mu).

    >>> MinMax("sign").direction
    'sign'
    """

    name: ClassVar[str] = "min-max"

    def _gamma(self, length: float, slope: Tensor, away: Tensor, squares: Tensor) -> float:
        room = (squares.max() - away).clamp(min=0)
        roots = ((slope.square() + length * room).sqrt() - slope) / length
        return roots.min().item()


class MinSum(_Farthest):
    """As far out, in sum of squares, as the benign client that is farthest from all others.

    Source: Shejwalkar and Houmansadr, NDSS 2021, "Manipulating the Byzantine". x' = mu + gamma p,
    mu the mean of the benign updates x_i, for the largest gamma with
    sum_i |x' - x_i|^2 <= max_i sum_j |x_i - x_j|^2. Weaker and better hidden than `min-max`.

    Args:
        direction: as that of `min-max`.

    >>> MinSum().direction
    'std'
    """

    name: ClassVar[str] = "min-sum"

    def _gamma(self, length: float, slope: Tensor, away: Tensor, squares: Tensor) -> float:
        room = (squares.sum(1).max() - away.sum()).clamp(min=0)
        return math.sqrt(room.item() / (len(away) * length))


class FangKrum(OmniscientAttack):
    """Moves the model against its direction by as much as Krum still chooses.

    Source: Fang et al. 2020, arXiv 1911.11815, section 4.2, with full knowledge. x' = -lambda s,
    s_j = 1 where the mean of the benign updates is above 0, else -1; in the paper s is the
    direction of the global model before the attack, which is Krum's choice among the benign, and
    the mean is a simplification. Lambda is halved, from the bound of theorem 1, until Krum on the
    benign updates and f copies of x' chooses a copy, or it is below `threshold`:

    lambda <= 1 / ((n - 2f - 1) sqrt(P)) min_i D_i + 1 / sqrt(P) max_i |x_i|, with D_i the sum of
    distances from benign client i to the n - f - 2 benign clients nearest to it. Where n is at most
    2f + 1, 1 stands for n - 2f - 1, and Krum has at least one neighbour. Where n is below 2f + 3,
    which Krum asks for, there may be no lambda at all, and never is for f = 1 and n up to 4: what
    is sent is then below `threshold` everywhere, which is no attack. A run warns of it.

    Args:
        threshold: above 0, the smallest change of a parameter that is worth an attack.

    Raises:
        ValueError: for a threshold that is no positive number.
    """

    name: ClassVar[str] = "fang-krum"

    def __init__(self, threshold: float = 1e-5) -> None:
        if not (threshold > 0 and math.isfinite(threshold)):
            raise ValueError(f"init_args.threshold is {threshold}; it must be a number above 0")
        self.threshold = threshold

    def doubt(self, n: int, f: int, before: Sequence[UpdateAttack] = ()) -> str | None:
        if n >= 2 * f + 3:
            return None
        return f"n={n} is below 2f + 3 for f={f}: Krum may choose no copy, and nothing is sent then"

    def forge(self, benign: UpdateMatrix, view: AttackView) -> Tensor:
        mean = plain_mean(benign)
        signs = torch.where(mean > 0, 1.0, -1.0).to(mean.dtype)
        f, distances = len(view.attackers), benign.distances()
        norms, along = benign.norms(), benign.inner(signs).flatten()
        size = benign.size
        strength = _bound(distances, norms, f, size)
        while strength >= self.threshold and not self._chosen(
            distances.square(), norms.square() + 2 * strength * along + strength**2 * size, f
        ):
            strength /= 2
        return -strength * signs

    def _chosen(self, squares: Tensor, to_copies: Tensor, f: int) -> bool:
        """Whether Krum chooses one of f copies, from squared distances between the benign [b, b]
        and from them to the copies [b]."""
        b = len(squares)
        near = max(1, b - 2)  # n - f - 2
        copy = torch.cat([torch.zeros(f - 1, dtype=torch.float64), to_copies])
        others = squares + torch.diag(torch.full((b,), torch.inf, dtype=torch.float64))
        rows = torch.cat([others, to_copies[:, None].expand(b, f)], 1)
        return bool(_nearest(copy, near) < min(_nearest(row, near) for row in rows))


def _bound(distances: Tensor, norms: Tensor, f: int, size: int) -> float:
    b = len(norms)
    # Of each row the first is the client itself, at no distance.
    sums = [_nearest(row, b - 1) for row in distances]
    scale = max(1, b - f - 1) * math.sqrt(size)
    return min(sums) / scale + norms.max().item() / math.sqrt(size)


def _nearest(values: Tensor, count: int) -> float:
    return values.sort().values[:count].sum().item()
