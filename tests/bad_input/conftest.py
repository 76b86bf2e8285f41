"""Bad input: exit code 2, one line that names the key, and no run directory left behind."""

from __future__ import annotations

import re

import pytest
import yaml

from fedgan.cli import main


@pytest.fixture
def write(tiny, tmp_path):
    """Writes the tiny config, changed, into mine.yaml; its path."""

    def make(changes=None):
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump(tiny({"run_dir": str(tmp_path / "run"), **(changes or {})})))
        return str(path)

    return make


@pytest.fixture
def refused(capsys):
    """The command fails with code 2 and one line: `refused("seed: -1", "train", path)`."""

    def check(words, *argv):
        assert main(list(argv)) == 2
        said = capsys.readouterr()
        lines = said.err.strip().splitlines()
        assert len(lines) == 1, said.err
        assert lines[0].startswith("fedgan: error: ")
        assert re.search(words, lines[0]), lines[0]

    return check


@pytest.fixture(scope="session")
def tree():
    """All there is under a folder, and what is in it; links as links."""

    def read(folder):
        return {
            str(path.relative_to(folder)): path.readlink()
            if path.is_symlink()
            else path.is_file() and path.read_bytes()
            for path in sorted(folder.rglob("*"))
        }

    return read
