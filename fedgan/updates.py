"""UpdateMatrix: what a rule may ask of the n updates of a round; every rule is written on it.

A rule works on columns (each parameter by itself, over clients) or on inner products and distances
(each client as a whole). Both run unchanged on one process or many; see `fedgan.shards`.

Pre-aggregations (clipping, mixing) give another UpdateMatrix whose rows are linear combinations of
the updates: a matrix of coefficients [k, n], not a copy of n x P numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fedgan.shards import RowShards, rank

CANCELLED = 1e-8
"""A squared distance below this share of the squared norms it comes from has lost 8 of float64's 16
digits."""


@dataclass(frozen=True)
class UpdateMatrix:
    """The updates (local minus global parameters) of the clients of one round.

    Args:
        rows: float32 [m, P], the updates of the m clients on this rank, in client order.
        clients: all n clients of the round, ascending; the same on every rank.
        owners: [n], the rank that holds each client's row.
        weights: float64 [k], FedAvg's weights, which sum to 1; what a defence starts from.
        mix: float64 [k, n]: the rows that a rule sees are mix @ updates. None: the updates.

    >>> updates = UpdateMatrix.of(torch.tensor([[0.0, 0.0], [3.0, 4.0]]))
    >>> updates.distances()[0, 1].item()
    5.0
    """

    rows: Tensor
    clients: tuple[int, ...]
    owners: tuple[int, ...]
    weights: Tensor
    mix: Tensor | None = None
    _known: dict[str, Tensor] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, rows: Tensor, weights: Tensor | None = None) -> UpdateMatrix:
        """All rows [n, P] on this process, outside a federation; equal weights unless given."""
        n = len(rows)
        if weights is None:
            weights = torch.full((n,), 1 / n, dtype=torch.float64)
        return cls(rows, tuple(range(n)), (0,) * n, weights)

    def __len__(self) -> int:
        return len(self.weights)

    @property
    def size(self) -> int:
        """P, the number of shared parameters."""
        return self.rows.shape[1]

    def columns(self, rule: Callable[[Tensor], Tensor]) -> Tensor:
        """Applies `rule`, which maps columns [k, b] in client order to [b], to all P columns.

        `rule` must treat each column by itself, and must not write into what it is given. Returns
        [P], the same on every rank.
        """
        return self._shards.map(lambda block: rule(self._mixed(block)))

    def weighted_mean(self, weights: Tensor) -> Tensor:
        """sum_i weights[i] * update_i, [P], added up in float64.

        `weights` is [k] and is used as it is; FedAvg's sum to 1. A weight of 0 leaves a client out.
        """
        weights = weights.double().cpu()
        coefficients = weights if self.mix is None else weights @ self.mix
        used = coefficients.nonzero().flatten()
        if len(used) == 1:
            (only,), factor = used.tolist(), float(coefficients[used])
            return self._shards.map(lambda block: factor * _exact(block[only]))
        factors = coefficients.to(self.rows.device)
        return self._shards.map(lambda block: factors @ _exact(block))

    def gram(self) -> Tensor:
        """Inner products of the rows, float64 [k, k], on the CPU."""
        if "gram" not in self._known:
            eye = torch.eye(len(self.clients), dtype=torch.float64)
            basis, products = torch.cat([eye, torch.ones_like(eye[:, :1])], 1), self._centred()
            gram = basis @ products @ basis.T
            # Updates far shorter than the centre have lost their digits in adding it again.
            if (gram.diagonal() < CANCELLED * products[-1, -1]).any():
                gram = self._products(lambda block, _: _exact(block), len(self.clients))
            self._known["gram"] = gram
        gram = self._known["gram"]
        return gram if self.mix is None else self.mix @ gram @ self.mix.T

    def gram_about(self, origin: Tensor) -> Tensor:
        """Inner products of the rows less `origin` [P], float64 [k, k], on the CPU."""

        def shifted(block: Tensor, columns: slice) -> Tensor:
            return _exact(self._mixed(block)) - origin[columns].double()

        return self._products(shifted, len(self))

    def gram_centred(self) -> Tensor:
        """Inner products of the rows less the one in the middle, float64 [k, k], on the CPU.

        They tell how far apart combinations of the rows are whose coefficients sum to the same, to
        more digits than `gram` does where the rows differ little.
        """
        basis = self._basis()
        apart = basis - basis[self.distances().median(1).values.argmin()]
        return apart @ self._centred() @ apart.T

    def norms(self, origin: Tensor | None = None) -> Tensor:
        """Euclidean norms of the rows, or of the rows less `origin` [P]: float64 [k]."""

        def term(block: Tensor, columns: slice) -> Tensor:
            rows = _exact(self._mixed(block))
            if origin is not None:
                rows -= origin[columns].double()
            return rows.square_().sum(1)

        return self._shards.sum(term, (len(self),)).cpu().sqrt()

    def distances(self) -> Tensor:
        """Euclidean distances between the rows, float64 [k, k], on the CPU.

        They come from inner products of CENTRED updates: those of clients that differ little drown
        in uncentred ones. Right to 1e-6 relative; equal updates are at 0.
        """
        products = self._centred()
        if self.mix is None:
            if "squares" not in self._known:
                squares, lost = _squares(products[:-1, :-1])
                pairs = torch.triu(lost, 1).nonzero()
                self._known["squares"] = _put(squares, pairs, self._squared_differences(pairs))
            return self._known["squares"].sqrt()
        basis = self._basis()
        centred = basis - basis.mean(0)
        squares, lost = _squares(centred @ products @ centred.T)
        pairs = torch.triu(lost, 1).nonzero()
        apart = basis[pairs[:, 0]] - basis[pairs[:, 1]]
        exact = ((apart @ products) * apart).sum(1).clamp_(min=0)
        return _put(squares, pairs, exact).sqrt()

    def inner(self, *vectors: Tensor) -> Tensor:
        """Inner products of the rows with vectors [P]: float64 [k, number of vectors]."""

        def term(block: Tensor, columns: slice) -> Tensor:
            return _exact(block) @ torch.stack([v[columns].double() for v in vectors], 1)

        products = self._shards.sum(term, (len(self.clients), len(vectors))).cpu()
        return products if self.mix is None else self.mix @ products

    def each(self, statistic: Callable[[Tensor, int], Tensor], size: int) -> Tensor:
        """What `statistic` makes of every row [P] by itself, and its position: float32 [n, size],
        the same on every rank; for a size far below P.

        Each rank works on the rows of its own clients, so only statistics travel. Raises
        `ValueError` after a pre-aggregation, whose rows lie on no single rank.
        """
        if self.mix is not None:
            raise ValueError("rows that were mixed are on no rank as a whole")
        return self._shards.each(statistic, size)

    def only(self, positions: Sequence[int], weights: Tensor) -> UpdateMatrix:
        """The rows at some positions, ascending, with weights [k] of their own; the others are as
        if their clients had handed in nothing. Raises `ValueError` after a pre-aggregation."""
        if self.mix is not None:
            raise ValueError("rows that were mixed cannot be told apart any more")
        clients = tuple(self.clients[i] for i in positions)
        owners = tuple(self.owners[i] for i in positions)
        here = [
            client
            for client, owner in zip(self.clients, self.owners, strict=True)
            if owner == rank()
        ]
        own = [j for j, client in enumerate(here) if client in clients]
        rows = self.rows if len(own) == len(here) else self.rows[own]
        return UpdateMatrix(rows, clients, owners, weights.double().cpu())

    def take(self, columns: Tensor) -> Tensor:
        """Some columns [q] of all rows: [k, q], on every rank; for a q far below P."""
        return self._mixed(self._shards.take(columns.to(self.rows.device)))

    def mixed(self, mix: Tensor, weights: Tensor | None = None) -> UpdateMatrix:
        """The matrix whose rows are mix @ rows, for coefficients [j, k].

        `weights` [j] are those of the new rows; the old ones unless given.
        """
        mix = mix.double().cpu()
        whole = mix if self.mix is None else mix @ self.mix
        weights = self.weights if weights is None else weights
        return replace(self, mix=whole, weights=weights)

    def part(self, start: int, stop: int) -> UpdateMatrix:
        """Columns `start` to `stop` alone: one network of several."""
        return replace(self, rows=self.rows[:, start:stop], _known={})

    @property
    def _shards(self) -> RowShards:
        return RowShards(self.rows, self.clients, self.owners)

    def _mixed(self, block: Tensor) -> Tensor:
        if self.mix is None:
            return block
        return self.mix.to(block.device) @ _exact(block)

    def _basis(self) -> Tensor:
        """The rows in terms of the centred updates and the centre: [k, n + 1]."""
        n = len(self.clients)
        mix = torch.eye(n, dtype=torch.float64) if self.mix is None else self.mix
        return torch.cat([mix, mix.sum(1, keepdim=True)], 1)

    def _centred(self) -> Tensor:
        """Inner products [n + 1, n + 1] of the updates less a centre, and of that centre, the last.

        The centre is their mean; or, where that is too far off to tell some of them apart (one
        outlier drags it as far as it likes), the client in the middle.
        """
        if "centred" not in self._known:
            n = len(self.clients)
            products = self._about(torch.full((n,), 1 / n, dtype=torch.float64))
            squares, lost = _squares(products[:-1, :-1])
            if lost.any():
                middle = torch.zeros(n, dtype=torch.float64)
                middle[squares.median(1).values.argmin()] = 1
                products = self._about(middle)
            self._known["centred"] = products
        return self._known["centred"]

    def _about(self, centre: Tensor) -> Tensor:
        centre = centre.to(self.rows.device)

        n = len(self.clients)

        def term(block: Tensor, columns: slice) -> Tensor:
            rows = _exact(block)
            middle = centre @ rows
            rows -= middle
            products = rows.new_empty((n + 1, n + 1))
            products[:n, :n] = rows @ rows.T
            products[n, :n] = products[:n, n] = rows @ middle
            products[n, n] = middle @ middle
            return products

        return self._shards.sum(term, (n + 1, n + 1)).cpu()

    def _products(self, shifted: Callable[[Tensor, slice], Tensor], count: int) -> Tensor:
        """Inner products [count, count] of what `shifted` makes of the blocks, on the CPU."""

        def term(block: Tensor, columns: slice) -> Tensor:
            rows = shifted(block, columns)
            return rows @ rows.T

        return self._shards.sum(term, (count, count)).cpu()

    def _squared_differences(self, pairs: Tensor) -> Tensor:
        """Squared distances of pairs [q, 2] of updates, from their differences: [q]."""
        few = len(self.clients)  # pairs at a time, so that they take no more room than a block
        chunks = pairs.to(self.rows.device).split(few)

        def term(block: Tensor, columns: slice) -> Tensor:
            return torch.cat(
                [(block[a].double() - block[b].double()).square().sum(1) for a, b in halves]
            )

        halves = [chunk.T for chunk in chunks]
        return self._shards.sum(term, (len(pairs),)).cpu() if len(pairs) else torch.empty(0)


def _exact(block: Tensor) -> Tensor:
    """A block in float64, and in memory of its own: the kernels of matrix products round by how
    their input lies there, and it must not matter whether the block was a view or has travelled."""
    return block.to(torch.float64, copy=True, memory_format=torch.contiguous_format)


def _squares(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distances [k, k] from inner products, and which of them have lost their digits."""
    norms = gram.diagonal()
    sums = norms[:, None] + norms[None]
    squares = (sums - 2 * gram).clamp_(min=0).fill_diagonal_(0)
    lost = (squares < CANCELLED * sums).fill_diagonal_(False)
    return squares, lost


def _put(squares: Tensor, pairs: Tensor, exact: Tensor) -> Tensor:
    first, second = pairs.T
    squares[first, second] = squares[second, first] = exact.to(squares.dtype)
    return squares
