"""RowShards: n rows of P numbers that lie on the ranks of their clients, read by column blocks.

A rule that needs all clients sees a block at a time: [n, b], all n values of b columns. An
all-to-all hands every rank the columns that are its own, a few megabytes at a time, so no rank
holds n x P unless it is the only one, and that one copies nothing.

Blocks begin and end at the same columns whatever the number of ranks, and what is summed over
columns is summed by slabs of whole blocks, slab after slab. So every answer is the same bytes for
any number of ranks up to `SLABS`. (A plain all-reduce adds in an order that depends on who holds
what, and vectorised kernels round the last columns of a block differently.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

SLABS = 24
"""Into so many slabs the columns are cut, of which each rank owns neighbouring ones: a number that
1, 2, 3, 4, 6, 8 and 12 ranks share evenly. What a rule needs for a block is small beside n x P."""
BLOCK = 2**21
"""Numbers in a block of columns that a rule joins, at most."""
PIECE = 2**19
"""Numbers in a block that is summed over, at most: several copies of it in float64 are made."""
EXCHANGE = 2**22
"""Numbers that a rank receives in one all-to-all, about."""


@dataclass(frozen=True)
class RowShards:
    """`rows` [m, P] of the m clients on this rank; `clients` [n] of all, ascending, and their
    `owners` [n], the same on every rank."""

    rows: Tensor
    clients: tuple[int, ...]
    owners: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.clients)

    @property
    def size(self) -> int:
        """P."""
        return self.rows.shape[1]

    def map(self, rule: Callable[[Tensor], Tensor]) -> Tensor:
        """Joins `rule`'s answers [b] for all blocks [n, b]: [P], the same on every rank."""
        # Written in place: a list of small answers, made between large blocks that come and go,
        # leaves the allocator with holes of up to the whole input's size.
        own = self.rows.new_zeros(self._slab * self._slabs_each)
        first = rank() * len(own)
        for _, columns, block in self._blocks(BLOCK):
            own[columns.start - first : columns.stop - first] = rule(block)
        if world() == 1:
            return own[: self.size]
        whole = own.new_empty((world(), len(own)))
        dist.all_gather(list(whole), own)
        return whole.flatten()[: self.size]

    def sum(self, term: Callable[[Tensor, slice], Tensor], shape: tuple[int, ...]) -> Tensor:
        """Sums `term(block, columns)`, float64 of `shape`, over all blocks, in their order."""
        device = self.rows.device
        slabs = torch.zeros((self._slabs_each, *shape), dtype=torch.float64, device=device)
        first = rank() * self._slabs_each
        for slab, columns, block in self._blocks(PIECE):
            slabs[slab - first] += term(block, columns)
        if world() > 1:
            everyone = slabs.new_empty((world(), *slabs.shape))
            dist.all_gather(list(everyone), slabs)
            slabs = everyone.flatten(0, 1)
        total = torch.zeros(shape, dtype=torch.float64, device=device)
        for part in slabs[:SLABS]:
            total += part
        return total

    def take(self, columns: Tensor) -> Tensor:
        """The columns [k] of all rows, [n, k], on every rank; for a k far below P."""
        return self._gathered(self.rows[:, columns])

    def each(self, statistic: Callable[[Tensor, int], Tensor], size: int) -> Tensor:
        """What `statistic` makes of each row [P] by itself and its position among the n: [n, size],
        float32, on every rank; for a size far below P."""
        own = self.rows.new_empty((len(self.rows), size))
        positions = [i for i, owner in enumerate(self.owners) if owner == rank()]
        for place, row, i in zip(own, self.rows, positions, strict=True):
            place.copy_(statistic(row, i))
        return self._gathered(own)

    def _gathered(self, own: Tensor) -> Tensor:
        """What each rank has of its own rows, [m, k], of all of them, [n, k]."""
        if world() == 1:
            return own
        counts = self._counts()
        own = nn.functional.pad(own, (0, 0, 0, max(counts) - len(own)))
        parts = own.new_empty((world(), *own.shape))
        dist.all_gather(list(parts), own.contiguous())
        joined = torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
        return joined[self._order()]

    @property
    def _slab(self) -> int:
        return max(1, -(-self.size // SLABS))

    @property
    def _slabs_each(self) -> int:
        return -(-SLABS // world())

    def _counts(self) -> list[int]:
        return [self.owners.count(one) for one in range(world())]

    def _order(self) -> list[int]:
        """Where each client's row is among rows that arrive by rank."""
        pairs = list(zip(self.clients, self.owners, strict=True))
        arrived = [client for one in range(world()) for client, owner in pairs if owner == one]
        return [arrived.index(client) for client in self.clients]

    def _blocks(self, most: int) -> Iterator[tuple[int, slice, Tensor]]:
        """This rank's blocks [n, b] in client order, of `most` numbers at most, each with its slab
        and its columns."""
        width = max(1, most // len(self))
        for slab, values in self._slabs():
            start, columns = slab * self._slab, values.shape[1]
            for left in range(0, columns, width):
                right = min(left + width, columns)
                yield slab, slice(start + left, start + right), values[:, left:right]

    def _slabs(self) -> Iterator[tuple[int, Tensor]]:
        """This rank's slabs [n, at most slab]."""
        each, slab = self._slabs_each, self._slab
        if world() == 1:
            for i in range(SLABS):
                if i * slab < self.size:
                    yield i, self.rows[:, i * slab : (i + 1) * slab]
            return
        together = max(1, EXCHANGE // (slab * len(self)))
        for step in range(0, each, together):
            count = min(together, each - step)
            values = self._exchange([one * each + step for one in range(world())], count)
            for j in range(count):
                i = rank() * each + step + j
                columns = min((i + 1) * slab, self.size) - i * slab
                if columns > 0:
                    yield i, values[:, j * slab : j * slab + columns]

    def _exchange(self, starts: list[int], count: int) -> Tensor:
        """One all-to-all: hands rank r `count` slabs from `starts[r]` on, [n, count * slab]."""
        width = count * self._slab
        outgoing = self.rows.new_zeros((world(), len(self.rows), width))
        for one, start in enumerate(starts):
            piece = self.rows[:, start * self._slab : start * self._slab + width]
            outgoing[one, :, : piece.shape[1]] = piece
        incoming = self.rows.new_empty((len(self), width))
        sent = [len(self.rows)] * world()
        dist.all_to_all_single(incoming, outgoing.view(-1, width), self._counts(), sent)
        order = self._order()
        return incoming if order == list(range(len(order))) else incoming[order]


def world() -> int:
    """Processes; 1 where none were started, as when a rule is used outside a federation."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def of_first_rank(value: Tensor) -> Tensor:
    """The first rank's value, on every rank: what each of them has computed by itself may differ in
    the last digits from device to device."""
    if world() > 1:
        dist.broadcast(value, 0)
    return value


def place(work: Sequence[int], world: int) -> list[int]:
    """The rank of each client: most work first, each to the rank with the least to do so far.

    >>> place([10, 40, 10, 20], 2)
    [1, 0, 1, 1]
    """
    load = [0] * world
    owners = [0] * len(work)
    for client in sorted(range(len(work)), key=lambda i: (-work[i], i)):
        rank = min(range(world), key=lambda r: (load[r], r))
        owners[client] = rank
        load[rank] += work[client]
    return owners
