"""A run's directory: one process at a time, and checkpoints that are whole or not there."""

import hashlib
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ddpm.errors import UserError
from ddpm.runs import Run, Status

LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"


def archive(number: int) -> bytes:
    """A file such as torch writes."""
    buffer = io.BytesIO()
    torch.save({"number": torch.full((1000,), number)}, buffer)
    return buffer.getvalue()


def save(run: Run, name: str, number: int) -> Path:
    path = run.checkpoints / name
    run.write_checkpoint(path, archive(number))
    return path


def test_another_process_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    holds = "import sys, time; from pathlib import Path; from ddpm.runs import Run\n"
    holds += f"with Run.open(Path({str(tmp_path / 'run')!r})) as run:\n run.status.write(run.directory)\n"
    holds += " print('held', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", holds], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    with pytest.raises(UserError, match=f"process {process.pid} on .* is training in"), Run.open(tmp_path / "run"):
        pass
    process.kill()  # with SIGKILL: a crash frees the lock
    process.wait()
    process.stdout.close()
    with Run.open(tmp_path / "run") as run:
        assert run.status.pid == process.pid


def test_a_run_that_wrote_nothing_leaves_no_trace(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="refused"), Run.open(tmp_path / "train" / "default" / "base"):
        raise ValueError("refused")
    assert list(tmp_path.glob("*")) == []


def test_the_folders_of_other_runs_stay(tmp_path: Path) -> None:
    (tmp_path / "train" / "default" / "other").mkdir(parents=True)
    with Run.open(tmp_path / "train" / "default" / "base"):
        pass
    assert [path.name for path in (tmp_path / "train" / "default").iterdir()] == ["other"]


def test_what_a_killed_process_left_half_written_is_removed(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    for name in (".status.json.17.tmp", "checkpoints/.last.ckpt.17.tmp"):
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / "config.yaml").write_text("{}")
    with Run.open(tmp_path):
        assert sorted(path.name for path in tmp_path.rglob("*.tmp")) == []


def test_last_the_one_before_and_best_are_kept(tmp_path: Path) -> None:
    with Run.open(tmp_path) as run:
        for number in range(4):
            save(run, LAST, number)
        save(run, BEST, 2)
        assert {path.name: path.read_bytes() for path in run.list_checkpoints()} == {
            LAST: archive(3),
            PREVIOUS: archive(2),
            BEST: archive(2),
        }
        assert Status.read(tmp_path).checkpoints[LAST][0] == hashlib.sha256(archive(3)).hexdigest()  # type: ignore[union-attr]
        assert run.newest_intact_checkpoint() == run.checkpoints / LAST


def damage_by_cutting(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def damage_by_flipping_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [damage_by_cutting, damage_by_flipping_a_bit])
@pytest.mark.parametrize("digests", ["known", "lost"])
def test_a_damaged_checkpoint_is_told_and_the_newest_intact_one_used(tmp_path: Path, damage, digests: str) -> None:
    with Run.open(tmp_path) as run:
        for number in range(3):
            save(run, LAST, number)
        save(run, BEST, 1)
        if digests == "lost":
            run.status.checkpoints.clear()
        told: list[str] = []
        damage(run.checkpoints / LAST)
        assert run.newest_intact_checkpoint(told.append) == run.checkpoints / PREVIOUS
        assert len(told) == 1
        assert "last.ckpt is damaged" in told[0]
        damage(run.checkpoints / PREVIOUS)
        assert run.newest_intact_checkpoint(told.append) == run.checkpoints / BEST
        damage(run.checkpoints / BEST)
        with pytest.raises(UserError, match=r"no checkpoint in .* is intact: restart=true"):
            run.newest_intact_checkpoint()


@pytest.mark.parametrize("at", ["os.fsync", "os.replace"])
@pytest.mark.parametrize("kills", [1, 3])
def test_a_kill_at_any_moment_of_a_save_leaves_a_checkpoint(tmp_path: Path, at: str, kills: int) -> None:
    """Real processes, one after the other, killed at each call of `at` that a save makes."""
    module, function = at.split(".")
    program = f"""
import os, sys, signal
from pathlib import Path
from ddpm.runs import Run
calls = 0
real = {module}.{function}
def counted(*arguments):
    global calls
    calls += 1
    if calls == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments)
with Run.open(Path(sys.argv[1])) as run:
    {module}.{function} = counted
    run.write_checkpoint(run.checkpoints / "last.ckpt", Path(sys.argv[3]).read_bytes())
"""
    new = tmp_path / "new.pt"
    new.write_bytes(archive(99))
    for call in range(1, 10):
        directory = tmp_path / str(call)
        with Run.open(directory) as run:
            save(run, LAST, 1)
            save(run, LAST, 2)
        for _ in range(kills):
            done = subprocess.run([sys.executable, "-c", program, str(directory), str(call), str(new)], check=False)
        with Run.open(directory) as run:
            told: list[str] = []
            found = run.newest_intact_checkpoint(told.append)
            assert found is not None
            assert told == []
            assert found.read_bytes() in (archive(99), archive(2))
        if done.returncode == 0:
            break
    assert call >= 3, "the save never got to the call"


def test_a_damaged_checkpoint_does_not_replace_the_one_before(tmp_path: Path) -> None:
    with Run.open(tmp_path / "run") as run:
        save(run, LAST, 1)
        save(run, LAST, 2)
        (run.checkpoints / LAST).write_bytes(archive(2)[:-100])
    with Run.open(tmp_path / "run") as run:
        assert run.newest_intact_checkpoint() == run.checkpoints / PREVIOUS
        save(run, LAST, 3)
        assert (run.checkpoints / PREVIOUS).read_bytes() == archive(1)
        save(run, LAST, 4)
        assert (run.checkpoints / PREVIOUS).read_bytes() == archive(3)
    for lost in (LAST, PREVIOUS):
        with Run.open(tmp_path / "run") as run:
            found = run.newest_intact_checkpoint()
            assert found == run.checkpoints / lost
            found.unlink()


def test_a_full_disk_leaves_the_checkpoints_as_they_were(tmp_path: Path) -> None:
    """On a real small file system."""
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(small)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("mounting a small file system needs root")
    try:
        with Run.open(small / "run") as run:
            save(run, LAST, 1)
            save(run, LAST, 2)
            with pytest.raises(OSError, match="No space left"):
                run.write_checkpoint(run.checkpoints / LAST, os.urandom(400_000))
            assert (run.checkpoints / LAST).read_bytes() == archive(2)
            assert (run.checkpoints / PREVIOUS).read_bytes() == archive(1)
            assert run.newest_intact_checkpoint() == run.checkpoints / LAST
            assert [path.name for path in small.rglob(".*.tmp")] == []
    finally:
        subprocess.run(["umount", str(small)], check=True)
