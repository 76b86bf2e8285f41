"""Both loggers in a real run, which is resumed and evaluated again."""

from __future__ import annotations

import pytest

from fedgan.experiment import evaluate, resume, run


@pytest.mark.slow
def test_a_run_resumed_and_evaluated_is_told_once(tiny, tmp_path, offline):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    folder = tmp_path / "run"
    changes = {
        "run_dir": str(folder),
        "federation.rounds": 3,
        "evaluate.every": 1,
        "evaluate.rounds": [2],
        "evaluate.measures": ["fidelity", "memory", "detection"],
        "attack.name": "patch",
        "defense.name": "krum",
        "defense.init_args": {"f": 0},
        "tracking.wandb": {"project": "p", "group": "g"},
        "tracking.tensorboard": True,
    }
    summary = run(tiny(changes))
    resume(folder, checkpoint=folder / "checkpoints" / "round_0002")
    evaluate(folder, only=["fidelity"])
    files = offline(folder)
    assert len({found.run.run_id for found in files}) == 1
    assert {found.run.job_type for found in files} == {"defended"}
    assert "attack: patch" in files[0].run.tags
    assert "defense: krum" in files[2].run.tags
    steps = [row["_step"] for found in files for row in found.history]
    assert steps == sorted(set(steps))
    rounds = files[0].rounds()
    assert [row["round"] for row in rounds] == [1, 2, 3]
    assert all({"fd_domain", "samples/path", "d_loss/client 2"} <= row.keys() for row in rounds)
    # What is found after a round of evaluate.rounds is in the next round's row.
    assert rounds[2]["full/round"] == 2
    assert {"memory_domain/path", "full/fd_domain"} <= rounds[2].keys()
    assert "full/fd_domain" not in rounds[1]
    assert "memory_domain/path" in files[0].history[-1]
    distances = [row["fd_domain"] for row in rounds]
    for found in files[:2]:
        assert found.summary["fd_domain"] == {"min": pytest.approx(min(distances))}
        assert found.summary["final/fd_domain"] == summary["figures"]["fd_domain"]
    assert files[2].summary["evaluated/fd_domain"] == summary["figures"]["fd_domain"]
    found = accumulator.EventAccumulator(str(folder / "tensorboard")).Reload()
    assert [event.step for event in found.Scalars("fd_domain")] == [1, 2, 3]
    for name in ("final", "evaluated"):
        found = accumulator.EventAccumulator(str(folder / "tensorboard" / name)).Reload()
        (event,) = found.Scalars(f"{name}/fd_domain")
        assert event.value == pytest.approx(summary["figures"]["fd_domain"])
