"""Who attacks, and from which round to which."""

from __future__ import annotations

from fedgan.attacks.schedule import Schedule


def test_both_ends_are_included():
    schedule = Schedule(frozenset({1, 3}), first=2, last=4)
    assert [round for round in range(1, 7) if schedule.active(3, round)] == [2, 3, 4]
    assert not any(schedule.active(0, round) for round in range(1, 7))


def test_without_a_last_round_it_never_stops():
    schedule = Schedule(frozenset({0}), first=5)
    assert not schedule.active(0, 4)
    assert schedule.active(0, 5)
    assert schedule.active(0, 10**6)


def test_attackers_are_the_malicious_among_the_sampled():
    schedule = Schedule(frozenset({1, 3}), first=2)
    assert schedule.attackers([0, 1, 2], 2) == {1}
    assert schedule.attackers([0, 1, 2, 3], 2) == {1, 3}
    assert schedule.attackers([0, 1, 2, 3], 1) == frozenset()
