"""Rules that look at directions: FoolsGold, FLTrust and FLAME."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from fedgan.defenses.base import Defense, ServerMeans, Verdict
from fedgan.defenses.clipping import check_positive, middle, shrink
from fedgan.defenses.draws import add_noise, coordinates
from fedgan.errors import UserError
from fedgan.reports import Report
from fedgan.seeding import torch_generator
from fedgan.updates import UpdateMatrix

log = logging.getLogger(__name__)
EQUAL = 1e-12
"""Cosines nearer than this to 1 (or to 0) are 1 (or 0): the rest is rounding."""


def cosines(gram: Tensor) -> Tensor:
    """Cosines [n, n] from inner products; 0 with a row of zeros.

    >>> cosines(torch.tensor([[4.0, 2.0], [2.0, 4.0]]))
    tensor([[1.0000, 0.5000],
            [0.5000, 1.0000]])
    """
    norms = gram.diagonal().clamp(min=0).sqrt()
    return _cosines(gram, norms[:, None] * norms)


def _cosines(products: Tensor, sizes: Tensor) -> Tensor:
    """Cosines from inner products and the products of norms."""
    found = torch.where(sizes > 0, products / sizes, 0.0).clamp(-1, 1)
    found = torch.where(found > 1 - EQUAL, 1.0, found)
    return torch.where(found.abs() < EQUAL, 0.0, found)


class FoolsGold(Defense):
    """FoolsGold: clients whose updates have pointed the same way for long are one and the same.

    Source: Fung et al. 2018, arXiv 1808.04866, algorithm 1. h_i is the sum of client i's updates of
    all rounds, c_ij the cosine of h_i and h_j, v_i = max_{j != i} c_ij. Where v_j > v_i, c_ij is
    pardoned: multiplied by v_i / v_j (by 0 where v_i < 0; the formula as printed would blame). Then
    a_i = 1 - max_j c_ij in [0, 1], a_i / max_j a_j, and w_i proportional to kappa (ln(a_i / (1 -
    a_i)) + 1/2) in [0, 1]. Where all are alike, nobody can be told apart, and all weigh the same.
    The paper's sum is a mean here, and its optional weights of features are left out.

    Departure: h is kept on a random sample of the coordinates, drawn once from the seed, since no
    rank can hold all clients' parameters; on 65536 of them a cosine is right to about 0.004.

    Stands sybils, if there are several and benign clients differ (a majority could put the benign
    in quarantine); believes a lone attacker, and takes benign clients with like images for sybils.
    Only clients of the same round are compared, n >= 2. Cost O(n P / ranks) to read, O(n^2 k). A
    score is the largest pardoned cosine; flagged is who weighs less than a tenth of 1 / n.

    Args:
        kappa: confidence; 1 in the paper.
        coordinates: k, of which the history is kept; all where there are no more.

    >>> updates = UpdateMatrix.of(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0]]))
    >>> FoolsGold()(updates, [], ServerMeans(1, torch.zeros(2))).weights
    tensor([1., 0., 0.], dtype=torch.float64)
    """

    name: ClassVar[str] = "foolsgold"

    def __init__(self, kappa: float = 1.0, coordinates: int = 65536) -> None:
        check_positive("kappa", kappa)
        if coordinates < 1:
            raise ValueError(f"init_args.coordinates is {coordinates}; it must be at least 1")
        self.kappa = kappa
        self.coordinates = coordinates
        self.history: dict[int, Tensor] = {}
        self._columns: Tensor | None = None

    def check(self, n: int) -> None:
        _check_two(self.name, n)

    def fewest(self) -> int:
        return 2

    def __call__(
        self, updates: UpdateMatrix, reports: Sequence[Report], server: ServerMeans
    ) -> Verdict:
        n = len(updates)
        if self._columns is None:
            rng = torch_generator(server.seed, "defense", self.name)
            self._columns = coordinates(updates.size, self.coordinates, rng)
        rows = updates.take(self._columns).float().cpu()
        for client, row in zip(updates.clients, rows, strict=True):
            self.history[client] = self.history.get(client, 0) + row
        history = torch.stack([self.history[client] for client in updates.clients]).double()
        pardoned = self.pardon(cosines(history @ history.T))
        weights = self.weigh(pardoned.amax(1))
        return Verdict.of(
            weights,
            pardoned.amax(1),
            weights < 0.1 / n,
            acted=not torch.equal(weights, updates.weights),
        )

    def pardon(self, alike: Tensor) -> Tensor:
        """The pardoned cosines [n, n], -1 on the diagonal."""
        alike = alike.clone().fill_diagonal_(-1)  # below any cosine: nobody is his own sybil
        most = alike.amax(1).clamp(min=0)
        ratio = most[:, None] / most[None]
        return torch.where(most[None] > most[:, None], alike * ratio, alike)

    def weigh(self, alike: Tensor) -> Tensor:
        """Weights [n] from the largest pardoned cosine of each."""
        own = (1 - alike).clamp(0, 1)
        if own.max() == 0:
            return torch.full_like(own, 1 / len(own))
        rates = (self.kappa * (torch.logit(own / own.max()) + 0.5)).clamp(0, 1)
        return rates / rates.sum()

    def state_dict(self) -> dict[str, Any]:
        return {"history": dict(self.history)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.history = dict(state["history"])


class FLTrust(Defense):
    """FLTrust: a client is trusted as far as it goes the way of one that the operator trusts.

    Source: Cao et al. 2021, arXiv 2012.13995, algorithm 2. With x_0 the root's update, trust t_i =
    relu(cos(x_i, x_0)), and x = sum_i t_i ||x_0|| / ||x_i|| x_i / sum_i t_i: no client counts for
    more than its direction, whatever its length. The paper's server trains on a small clean data
    set of its own; a generator's server has none, so the root is a client, a hospital that the
    operator vouches for. As in the paper its update is the measure and is not averaged.

    Stands any f < n / 2 whose updates point away from the root's (a majority could put the root in
    quarantine); stands nothing where the root is malicious. n >= 2, and the root has to be there:
    in a round in which it has handed in nothing usable (with `federation.sample` below 1 it is not
    always drawn), or in which nobody is trusted, the aggregate is 0, all weights are 0, and that is
    logged. Cost O(n P). A score is 1 - cosine; flagged is who is not trusted at all.

    Args:
        root: number of the trusted client, from 0.

    >>> updates = UpdateMatrix.of(torch.tensor([[3.0, 0.0], [9.0, 0.0], [0.0, 3.0], [-3.0, 0.0]]))
    >>> FLTrust(root=0)(updates, [], ServerMeans(1, torch.zeros(2))).aggregate
    tensor([3., 0.])
    """

    name: ClassVar[str] = "fltrust"

    def __init__(self, root: int) -> None:
        if root < 0:
            raise ValueError(f"init_args.root is {root}; clients count from 0")
        self.root = root

    def check(self, n: int) -> None:
        _check_two(self.name, n)

    def check_clients(self, clients: int) -> None:
        if self.root >= clients:
            raise UserError(
                f"defense: fltrust: root is {self.root}; there is no such client, they are 0 to "
                f"{clients - 1}"
            )

    def fewest(self) -> int:
        return 2

    def __call__(
        self, updates: UpdateMatrix, reports: Sequence[Report], server: ServerMeans
    ) -> Verdict:
        if self.root not in updates.clients:
            return self._nothing(updates, server, "has handed in nothing usable")
        root = updates.clients.index(self.root)
        measure = updates.weighted_mean(torch.eye(len(updates))[root])
        norms = updates.norms()
        alike = _cosines(updates.inner(measure).flatten(), norms * norms[root])
        trust = alike.clamp(min=0)
        trust[root] = 0
        flagged = trust == 0
        flagged[root] = False
        if trust.sum() == 0:
            return self._nothing(updates, server, "is followed by nobody", 1 - alike, flagged)
        weights = trust / trust.sum()
        lengths = torch.where(trust > 0, norms[root] / norms, 0.0)
        aggregate = updates.weighted_mean(weights * lengths)
        return Verdict.of(weights, 1 - alike, flagged, aggregate=aggregate)

    def _nothing(
        self,
        updates: UpdateMatrix,
        server: ServerMeans,
        why: str,
        scores: Tensor | None = None,
        flagged: Tensor | None = None,
    ) -> Verdict:
        log.warning(
            "round %d: fltrust: root %d %s; the global model stays as it is",
            *(server.round, self.root, why),
        )
        nobody = torch.zeros(len(updates), dtype=torch.float64)
        aggregate = updates.rows.new_zeros(updates.size)
        return Verdict.of(nobody, scores, flagged, aggregate=aggregate)


class FLAME(Defense):
    """FLAME: the largest cluster of directions, clipped to the median norm, and noise.

    Source: Nguyen et al. 2022, arXiv 2101.02281, algorithm 1. HDBSCAN (min_cluster_size n // 2 + 1,
    min_samples 1, allow_single_cluster) on the cosine distances of the clients' models admits L
    clients; S is the median of all n norms; x = 1/L sum_admitted x_i min(1, S / ||x_i||) + N(0,
    (lambda S)^2 I). Every admitted client counts alike, whatever its number of images.

    With these settings HDBSCAN has one cluster: the first connected group of more than n / 2
    clients that appears as the distance allowed between neighbours grows (single linkage). That is
    what is computed here. There always is one, so a round without a cluster does not come up. It is
    also why FLAME turns away benign clients, up to n / 2 of them where nobody attacks.

    Stands f < n / 2 that lie apart from the others; any n (one or two are all admitted). Two passes
    of O(n^2 P). A score is the mean cosine distance from the admitted; flagged are the others.

    Args:
        noise: lambda; 0.001 in the paper for images.
        compare: whose directions: `models` (the paper: global parameters plus update), or
            `updates`, as many reimplementations have it, which are more unlike one another.

    >>> updates = UpdateMatrix.of(torch.tensor([[1.0, 0.0], [2.0, 0.1], [1.0, 0.1], [-5.0, 5.0]]))
    >>> FLAME()(updates, [], ServerMeans(1, torch.zeros(2))).flagged
    tensor([False, False, False,  True])
    """

    name: ClassVar[str] = "flame"

    def __init__(
        self, noise: float = 0.001, compare: Literal["models", "updates"] = "models"
    ) -> None:
        if not 0 <= noise < math.inf:
            raise ValueError(f"init_args.noise is {noise}; it must be at least 0")
        self.noise = noise
        self.compare = compare

    def __call__(
        self, updates: UpdateMatrix, reports: Sequence[Report], server: ServerMeans
    ) -> Verdict:
        models = self.compare == "models"
        gram = updates.gram_about(-server.parameters) if models else updates.gram()
        apart = 1 - cosines(gram)
        admitted = majority(apart)
        norms = updates.norms()
        bound = float(middle(norms))
        counted = admitted * shrink(norms, bound) / admitted.sum()
        mean = updates.weighted_mean(counted)
        aggregate = add_noise(mean, self.noise * bound, server.rng(self.name))
        scores = apart[:, admitted].mean(1)
        return Verdict.of(counted / counted.sum(), scores, ~admitted, aggregate=aggregate)


def majority(distances: Tensor) -> Tensor:
    """The first single-linkage cluster of more than half of n points: bool [n], from their
    distances [n, n].

    >>> points = torch.tensor([0.0, 9.0, 1.0, 5.0, 2.0])
    >>> majority((points[:, None] - points).abs())
    tensor([ True, False,  True, False,  True])
    """
    from scipy.cluster.hierarchy import fcluster, linkage

    n = len(distances)
    if n < 3:
        return torch.ones(n, dtype=torch.bool)
    first, second = torch.triu_indices(n, n, 1)
    merges = linkage(distances[first, second].numpy(), "single")
    height = next(height for _, _, height, size in merges if size > n // 2)
    labels = torch.from_numpy(fcluster(merges, height, "distance"))
    return labels == labels.bincount().argmax()


def _check_two(name: str, n: int) -> None:
    if n < 2:
        raise UserError(f"defense: {name} compares clients, and needs at least 2 in a round")
