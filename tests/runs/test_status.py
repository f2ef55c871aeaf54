import json
import os
import subprocess
from pathlib import Path

import pytest

from ddpm.runs.status import MAX_ERROR, Status, git_state, provenance, write_json, write_provenance


def test_write_json_replaces_the_file(tmp_path):
    path = tmp_path / "metrics.json"
    write_json(path, {"val/loss": 1.0})
    before = path.stat().st_ino
    write_json(path, {"val/loss": float("nan"), "x": -float("inf"), "grid": Path("a.png"), "list": (1, 2)})
    assert path.stat().st_ino != before
    assert json.loads(path.read_text()) == {"val/loss": None, "x": None, "grid": "a.png", "list": [1, 2]}
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "metrics.json"
    write_json(path, {"step": 1})

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_json(path, {"step": 2})
    assert json.loads(path.read_text()) == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_status_can_be_read_back(tmp_path):
    assert Status.read(tmp_path) is None
    status = Status(step=7, epoch=1, updated="yesterday")
    status.write(tmp_path)
    assert status.updated != "yesterday"
    assert Status.read(tmp_path) == status
    status.state, status.error = "failed", "out of memory"
    status.write(tmp_path)
    again = Status.read(tmp_path)
    assert again is not None
    assert (again.state, again.error, again.pid) == ("failed", "out of memory", os.getpid())


def test_a_long_error_keeps_its_start_and_its_end(tmp_path):
    status = Status(error="a" * MAX_ERROR + "b" * MAX_ERROR)
    status.write(tmp_path)
    assert status.error is not None
    start, left_out, end = status.error.split("\n")
    assert (start, end) == ("a" * (MAX_ERROR // 2), "b" * (MAX_ERROR // 2))
    assert f"{MAX_ERROR} characters left out" in left_out


def test_provenance_is_json_with_versions():
    record = json.loads(json.dumps(provenance("cpu")))
    assert record["device"] == "cpu"
    assert all(record["versions"][name] for name in ("python", "torch", "lightning", "hydra-core"))
    assert {"git", "command_line", "host", "time"} <= record.keys()


def test_status_of_another_version_is_read(tmp_path):
    """An unknown field is ignored, a missing one has its default."""
    (tmp_path / "status.json").write_text('{"state": "finished", "checkpoints": {"last.ckpt": ["ab"]}}')
    status = Status.read(tmp_path)
    assert status is not None
    assert (status.state, status.step) == ("finished", 0)


def test_provenance_keeps_the_records_of_earlier_processes(tmp_path):
    for number in range(3):
        write_provenance(tmp_path, "cpu", number=number)
    record = json.loads((tmp_path / "provenance.json").read_text())
    assert (record["number"], [earlier["number"] for earlier in record["earlier"]]) == (2, [1, 0])


def test_git_state_of_the_clone_that_tracks_the_code(tmp_path):
    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    package = tmp_path / "src" / "ddpm"
    installed = tmp_path / ".venv" / "ddpm"
    for folder in (package, installed):
        folder.mkdir(parents=True)
        (folder / "code.py").write_text("x = 1\n")
    assert git_state(package) is None
    (tmp_path / ".gitignore").write_text(".venv\n")
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "-m", "first")
    (package / "code.py").write_text("x = 2\n")
    (package / "new.py").write_text("")
    state = git_state(package)
    assert state is not None
    assert state["commit"] == git("rev-parse", "HEAD").strip()
    assert "+x = 2" in state["diff"]
    assert state["untracked"] == ["src/ddpm/new.py"]
    assert git_state(installed) is None
