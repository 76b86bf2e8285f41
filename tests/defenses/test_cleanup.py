"""What the audit does about what excluded clients have put into the global model."""

from __future__ import annotations

import pytest
import torch

from fedgan.defenses._cleanup import Cleanup
from fedgan.updates import UpdateMatrix


def rounds_of(cleanup, first, *drawn, suspects=frozenset()):
    """Rounds from `first` on, whose models are their numbers, of the clients drawn in each."""
    for round, clients in enumerate(drawn, first):
        cleanup.begin(round, torch.tensor([float(round)]))
        n = len(clients)
        updates = UpdateMatrix(torch.ones(n, 1), clients, (0,) * n, torch.ones(n) / n)
        cleanup.end(round, updates, updates.weights, suspects)


def undoing(cleanup, newly, round, parameter):
    correction, back_to = cleanup.correction(set(newly), newly, round, torch.tensor([parameter]))
    return correction.item(), back_to


def test_rollback_a_second_time_goes_back_as_far_as_the_first():
    """The model that the second client's alarm began with was itself undone."""
    cleanup, all_three = Cleanup("rollback", 6), (0, 1, 2)
    rounds_of(cleanup, 1, *4 * [all_three])
    cleanup.begin(5, torch.tensor([5.5]))
    assert undoing(cleanup, {0: 4}, 5, 5.5) == (2 - 5.5, 2)
    updates = UpdateMatrix(torch.ones(2, 1), (1, 2), (0, 0), torch.ones(2) / 2)
    cleanup.end(5, updates, updates.weights, set())
    cleanup.begin(6, torch.tensor([2.5]))
    assert undoing(cleanup, {1: 6}, 6, 2.7) == (pytest.approx(2 - 2.7), 5)
    rounds_of(cleanup, 7, *7 * [all_three])
    cleanup.begin(14, torch.tensor([0.0]))
    assert undoing(cleanup, {2: 6}, 14, 0.0) == (8, 8)  # six finished rounds are undone: 8 to 13


def test_rollback_undoes_no_round_in_which_the_client_counted_for_nothing():
    cleanup = Cleanup("rollback", 6)
    rounds_of(cleanup, 1, (0, 1), (1, 2), (0, 2), (1, 2), (1, 2))
    assert undoing(cleanup, {0: 4}, 6, 6.0) == (3 - 6, 3)
    rounds_of(cleanup, 6, *8 * [(1, 2)])
    assert cleanup.correction({0}, {0: 2}, 14, torch.tensor([14.0])) == (None, None)


def test_what_a_suspect_put_in_is_remembered_while_it_is_not_drawn():
    cleanup = Cleanup("remove", 6)
    rounds_of(cleanup, 1, (0, 1), (1, 2), (0, 1, 2), suspects={0})
    assert undoing(cleanup, {0: 1}, 4, 4.0) == (pytest.approx(-1 / 2 - 1 / 3), None)


def test_with_a_memory_of_one_round_that_round_is_undone():
    cleanup = Cleanup("rollback", 1)
    rounds_of(cleanup, 1, *3 * [(0, 1)])
    cleanup.begin(4, torch.tensor([4.0]))
    assert undoing(cleanup, {0: 2}, 4, 4.0) == (3 - 4, 3)
