"""Rules by name: for a config, and for plain arrays outside a federation."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from fedgan.components import build, find
from fedgan.defenses.base import Defense, Detector, ServerMeans, Stage
from fedgan.defenses.chain import Chain
from fedgan.defenses.detected import Detected
from fedgan.defenses.fedavg import FedAvg
from fedgan.errors import UserError
from fedgan.reports import OK, Report, usable
from fedgan.settings import Component, as_component
from fedgan.updates import UpdateMatrix

log = logging.getLogger(__name__)
Rows = TypeVar("Rows", Tensor, np.ndarray)
Choice = str | dict[str, Any] | Component


def make_defense(choices: Sequence[Choice], key: str = "defense") -> Defense:
    """The defence that a config names: one rule, or a chain. Fills in `init_args` of components.

    Raises `UserError` for unknown names or arguments, and for stages that do not go together.
    """
    stages: list[Stage] = []
    for choice in choices:
        component = as_component(choice)
        if component.name == "none" and component.class_path is None:
            component = Component(FedAvg.name)
        cls = find(key, component, "fedgan.defenses", Stage)  # type: ignore[type-abstract]
        stages.append(build(key, component, cls))
    first = stages[0] if stages else None
    if isinstance(first, Detector):
        return Detected(first, _rule(stages[1:], key))
    return _rule(stages, key)


def _rule(stages: list[Stage], key: str) -> Defense:
    late = [stage.name for stage in stages if isinstance(stage, Detector)]
    if late:
        raise UserError(f"{key}: {late[0]} judges before all other stages; it must be the first")
    if len(stages) == 1 and isinstance(stages[0], Defense):
        return stages[0]
    return Chain(stages)


def aggregate(
    updates: Rows | Sequence[Rows],
    rule: Choice | Sequence[Choice],
    *,
    weights: Sequence[float] | None = None,
    seed: int = 0,
    **parameters: Any,
) -> Rows:
    """Joins n updates by a rule of fedgan's, outside any federation.

    Args:
        updates: a tensor or an array [n, P], or n of them [P]; they stay as they are.
        rule: short name (`fedgan components` lists them), or a chain of them, as in
            `["clip", "nnm", "krum"]`; a stage with arguments of its own is a mapping of `name` and
            `init_args`.
        weights: [n], what FedAvg weighs by (images, say); equal unless given.
        seed: of rules that draw at random.
        **parameters: the rule's; for a single one.

    Returns:
        The aggregate [P], of the same kind, dtype and device as the updates.

    Updates that are not finite, all zero, gigantic (a million times the upper median's norm) or of
    another length than most are put aside with a warning; n and f are of those that are left.

    Raises:
        UserError: for an unknown rule or parameter, one that is impossible for this n, a rule that
            reads losses, for weights that are none, and where too few updates are usable.

    >>> updates = torch.tensor([[1.0, 2.0], [2.0, 3.0], [3.0, 4.0], [90.0, -90.0]])
    >>> aggregate(updates, "median")
    tensor([2.5000, 2.5000])
    >>> aggregate(updates, "trimmed-mean", f=1)
    tensor([2.5000, 2.5000])
    >>> aggregate(updates, ["nnm", {"name": "median"}])
    tensor([2., 3.])
    """
    rows = [torch.as_tensor(row) for row in updates]
    if not all(row.is_floating_point() for row in rows):
        raise UserError("updates are floating-point numbers")
    defense = _rule_for_plain_updates(rule, parameters)
    kept = _enough(_usable(rows), len(rows), defense.fewest())
    shares = _shares(weights, len(rows), kept)
    matrix = UpdateMatrix(_stacked(updates, rows, kept), tuple(kept), (0,) * len(kept), shares)
    server = ServerMeans(1, torch.zeros_like(rows[kept[0]]), seed)
    defense.check(len(rows))
    defense.check_clients(len(rows))
    joined = defense(matrix, [_report(i) for i in kept], server).joined(matrix)
    kind = updates if _is_one(updates) else updates[0]
    return joined if isinstance(kind, Tensor) else joined.numpy()  # type: ignore[return-value]


def _rule_for_plain_updates(rule: Choice | Sequence[Choice], parameters: dict[str, Any]) -> Defense:
    """The rule, or the chain; refuses those that need more of a client than its update."""
    several = isinstance(rule, (list, tuple))
    if several and parameters:
        raise UserError("parameters belong to a single rule; give a chain's as init_args")
    choices: list[Choice] = list(rule) if several else [_with(rule, parameters)]  # type: ignore[arg-type,list-item]
    defense = make_defense(choices, "rule")
    for stage in _stages(defense):
        if stage.reads_losses:
            raise UserError(f"{stage.name} reads losses; there are none beside plain updates")
        if stage.runs_generators:
            raise UserError(f"{stage.name} runs the clients' generators; plain updates are none")
    return defense


def _stages(defense: Defense) -> list[Stage]:
    if isinstance(defense, Detected):
        return [defense.detector, *_stages(defense.rule)]
    return defense.stages if isinstance(defense, Chain) else [defense]


def _enough(kept: list[int], n: int, fewest: int) -> list[int]:
    """The usable updates of n, where the rule can do with so few."""
    if not kept:
        raise UserError("none of the updates is usable")
    if len(kept) < fewest:
        raise UserError(f"{len(kept)} of {n} updates are usable; the rule needs {fewest}")
    return kept


def _shares(weights: Sequence[float] | None, n: int, kept: list[int]) -> Tensor:
    """What those that are kept of n updates weigh beside one another: they sum to 1."""
    shares = torch.ones(n, dtype=torch.float64) if weights is None else _checked(weights, n)
    own = shares[kept]
    if own.sum() == 0:
        raise UserError("weights: those of the usable updates are all 0")
    return own / own.sum()


def _checked(weights: Sequence[float], n: int) -> Tensor:
    shares = torch.tensor(list(weights), dtype=torch.float64)
    if len(shares) != n:
        raise UserError(f"weights: {len(shares)} of them for {n} updates")
    if not (shares.isfinite() & (shares >= 0)).all():
        raise UserError("weights: they are finite and at least 0")
    return shares


def _is_one(updates: Any) -> bool:
    """Whether all updates are one tensor or array [n, P], not n of them."""
    return isinstance(updates, (Tensor, np.ndarray))


def _stacked(updates: Any, rows: list[Tensor], kept: list[int]) -> Tensor:
    """The usable updates as one tensor; no copy where it is one already."""
    if _is_one(updates) and len(kept) == len(rows):
        return torch.as_tensor(updates)
    return torch.stack([rows[i] for i in kept])


def _report(client: int) -> Report:
    """That of a client of whom nothing but the update is known."""
    nan = math.nan
    return Report(client, 1, 1, nan, nan, nan, nan, OK)


def _with(rule: Choice, parameters: dict[str, Any]) -> Component:
    component = as_component(rule)
    return Component(component.name, component.class_path, {**component.init_args, **parameters})


def _usable(rows: list[Tensor]) -> list[int]:
    """Which updates can be used; tells of the others."""
    lengths = [row.numel() for row in rows]
    usual = max(set(lengths), key=lengths.count)
    fitting = [i for i, length in enumerate(lengths) if length == usual]
    norms = [torch.linalg.vector_norm(rows[i], dtype=torch.float64).item() for i in fitting]
    statuses = {i: f"{lengths[i]} numbers instead of {usual}" for i in range(len(rows))}
    statuses |= dict(zip(fitting, usable(norms), strict=True))
    for i, status in statuses.items():
        if status != OK:
            log.warning("update %d left out: %s", i, status)
    return [i for i in range(len(rows)) if statuses[i] == OK]
