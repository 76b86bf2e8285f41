"""What is shown of a grid at work, and what it is going to cost."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from fedgan.cli import main
from fedgan.errors import UserError
from fedgan.grid import progress as module
from fedgan.grid.cells import read_grid
from fedgan.grid.estimate import Estimate, estimates, kind_of, wall_clock
from fedgan.grid.folder import Folder, last_error
from fedgan.grid.progress import Progress
from fedgan.runs import read_grid_dir
from fedgan.settings import Experiment

HEADER = "round,seconds,images_per_second,fd_domain,fd_domain_ratio\n"


class Clock:
    now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(module, "time", made)
    return made


@pytest.fixture
def show(write_grid):
    """A grid of 4 cells of 10 rounds, 2 at a time, on a terminal or none; and what it prints."""

    def make(terminal=False, finished=()):
        grid = read_grid(write_grid(in_base={"federation.rounds": 10}))
        out = io.StringIO()
        console = Console(file=out, force_terminal=terminal, width=120)
        return Progress(console, grid.cells, finished, 2), grid.cells, out

    return make


def at_round(cell, *rows):
    cell.run_dir.mkdir(parents=True, exist_ok=True)
    (cell.run_dir / "metrics.csv").write_text(HEADER + "".join(f"{row}\n" for row in rows))


def finish(cell, seconds):
    cell.run_dir.mkdir(parents=True, exist_ok=True)
    figures = {"fd_domain": 3.0, "fd_domain_ratio": 7.5, "presence": 0.25}
    (cell.run_dir / "summary.json").write_text(json.dumps({"seconds": seconds, "figures": figures}))


def test_plain_lines_where_there_is_no_terminal(show, clock):
    shown, cells, out = show()
    with shown:
        shown.started(cells[0])
        at_round(cells[0], "1,2.0,400,,", "2,2.0,410,5,9.5", "3,2.0,420,,")
        clock.now += 31
        shown.tick()
        clock.now += 9
        finish(cells[0], 40)
        shown.ended(cells[0], "finished")
        shown.ended(cells[1], "failed", "it broke")
        shown.ended(cells[2], "held")
    lines = out.getvalue().splitlines()
    assert lines == [
        "start     none__none__seed-1",
        "          none__none__seed-1  round 3/10  420 images/s  distance 9.50  0:14 left",
        "finished  none__none__seed-1  in 0:40  distance 7.50  presence 25.0%  "
        "(1 of 4 done, 3 to go, 1:00 left)",
        "failed    patch__none__seed-1: it broke",
        "skipped   none__median__seed-1: another process is at work on it",
    ]


def test_a_table_on_a_terminal(show, clock):
    shown, cells, out = show(terminal=True)
    finish(cells[3], 100)
    shown = Progress(shown.console, cells, [cells[3].name], 2)
    with shown:
        shown.started(cells[0])
        shown.started(cells[1])
        at_round(cells[0], "1,2.0,400,,", "2,2.0,410,5,9.5")
        clock.now += 20
        shown.tick()
    last = out.getvalue().rpartition("cell")[2]
    assert all(word in last for word in ("2/10", "410", "9.50", "1:20", "preparing"))
    assert "1 of 4 done, 1 to go, 2:10 left" in last  # (80 + 80 + 100) / 2


def test_nothing_is_promised_before_anything_is_known(show, clock):
    shown, cells, _ = show()
    with shown:
        shown.started(cells[0])
        assert shown.seconds_left() is None
        assert shown.counts() == "0 of 4 done, 3 to go"


def test_a_dry_run_prints_cells_hours_and_disk_and_writes_nothing(write_grid, tmp_path, capsys):
    path = write_grid()
    assert main(["grid", str(path), "--dry-run", "--jobs=2"]) == 0
    said = capsys.readouterr().out
    assert said.count("missing") == 4
    assert said.count(" 96 ") == 4  # 3 clients x 2 rounds x 2 steps of 8 images
    assert "4 cells, 4 to train: 384 images" in said
    assert "2 at a time" in said
    assert "GB of disk" in said
    assert sorted(one.name for one in tmp_path.iterdir()) == ["base.yaml", "mine.yaml"]


def test_hours_follow_what_finished_cells_took(write_grid):
    folder = Folder(read_grid(write_grid(data={"short": {}, "long": {"federation.rounds": 20}})))
    (cell,) = (one for one in folder.grid.cells if one.name == "short__none__none__seed-1")
    finish(cell, 10.0)
    found, absent = estimates(folder, 1)
    assert not absent
    seconds = {one.cell.name: round(one.seconds, 6) for one in found}
    assert seconds["short__none__none__seed-1"] == 0  # finished
    assert seconds["short__patch__none__seed-1"] == 10
    assert seconds["long__patch__none__seed-1"] == 100
    assert all(one.measured for one in found)


def test_a_cell_that_was_cut_off_is_to_play_the_rounds_that_are_left(write_grid):
    folder = Folder(read_grid(write_grid(in_base={"federation.rounds": 20}, attacks=None)))
    done, cut = folder.grid.cells
    finish(done, 10.0)
    (cut.run_dir / "checkpoints" / "round_0014").mkdir(parents=True)
    (cut.run_dir / "checkpoints" / "round_0015").mkdir()
    found, _ = estimates(folder, 1)
    assert [(one.state, one.images) for one in found] == [("finished", 960), ("cut off", 240)]
    assert found[1].seconds == pytest.approx(2.5)


@pytest.mark.parametrize("summary", ["{}", "[]", '{"seconds": null}', "{"])
def test_a_summary_that_does_not_say_how_long_tells_nothing(write_grid, summary):
    folder = Folder(read_grid(write_grid(attacks=None, defenses=None)))
    (cell,) = folder.grid.cells
    cell.run_dir.mkdir(parents=True)
    (cell.run_dir / "summary.json").write_text(summary)
    (one,), _ = estimates(folder, 1)
    assert (one.seconds, one.measured) == (0.0, False)


def test_a_resumed_cell_takes_what_is_left_of_it(show, clock):
    shown, cells, _ = show()
    at_round(cells[0], *(f"{i},2.0,400,," for i in range(1, 9)))
    with shown:
        shown.started(cells[0])
        clock.now += 3
        at_round(cells[0], *(f"{i},2.0,400,," for i in range(1, 10)))
        shown.tick()
        # one round in 3 s: 10 of them for each of 3 cells, 2 s for the round left; 2 at a time
        assert shown.seconds_left() == pytest.approx((2 + 3 * 30) / 2)
        finish(cells[0], 27.0)
        shown.ended(cells[0], "finished")
        assert shown.seconds_left() == pytest.approx(3 * 27 / 2)
        at_round(cells[1], *(f"{i},2.0,400,," for i in range(1, 6)))
        shown.started(cells[1])
        shown.tick()
        assert shown.seconds_left() == pytest.approx((27 / 2 + 2 * 27) / 2)


def test_what_is_not_at_hand_is_told_and_not_counted(write_grid, capsys):
    path = write_grid(data={"here": {}, "there": {"data.path": "none.npz"}})
    assert main(["grid", str(path), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "8 cells, 8 to train: 384 images" in said
    assert "not counted: 4 cells, whose data is not here: cell there__none__none__seed-1" in said


def test_another_loss_is_another_kind_of_step():
    one, other = Experiment(), Experiment()
    other.federation.clients = 9
    assert kind_of(one) == kind_of(other)
    other.loss.init_args = {"gamma": 0.0}
    assert kind_of(one) != kind_of(other)


def test_wall_clock_is_of_cells_begun_in_order():
    def cost(seconds, state="missing"):
        return Estimate(None, state, 1, seconds, 1, measured=True)

    assert wall_clock([cost(3), cost(1), cost(1), cost(9, "finished")], 2) == 3
    assert wall_clock([cost(1), cost(1), cost(3)], 2) == 4


def test_the_error_is_the_logs_last_word(tmp_path):
    log = tmp_path / "one.log"
    assert last_error(log) == ""
    log.write_text("round 1\nfedgan: error: data: is gone\n")
    assert last_error(log) == "data: is gone"
    log.write_text(log.read_text() + "srun: error: node1: task 0: Exited with exit code 2\n")
    assert last_error(log) == "data: is gone"
    log.write_text(log.read_text() + "fedgan grid: again\n")
    assert last_error(log) == ""


@pytest.mark.parametrize(
    ("text", "words"), [(None, "no grid here"), ("{", "is broken"), ('[{"name": 1}]', "is broken")]
)
def test_no_grid_to_read(tmp_path, text, words):
    if text is not None:
        (tmp_path / "grid.json").write_text(text)
    with pytest.raises(UserError, match=words):
        read_grid_dir(tmp_path)
