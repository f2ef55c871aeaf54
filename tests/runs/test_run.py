"""A run's directory: one process at a time, checkpoints that are complete or absent."""

import errno
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ddpm.errors import UserError
from ddpm.runs import Run, is_locked, write_json
from ddpm.runs.files import os_errors_in_one_line

LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"


def archive(number: int) -> bytes:
    """The bytes of a checkpoint that torch.save writes."""
    buffer = io.BytesIO()
    torch.save({"number": torch.full((1000,), number)}, buffer)
    return buffer.getvalue()


def save(run: Run, name: str, number: int) -> Path:
    path = run.checkpoints / name
    run.write_checkpoint(path, archive(number))
    return path


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    holds = "import sys, time; from pathlib import Path; from ddpm.runs import Run\n"
    holds += f"with Run.open(Path({str(tmp_path / 'run')!r})) as run:\n run.status.write(run.directory)\n"
    holds += " print('held', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", holds], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    with pytest.raises(UserError, match=f"process {process.pid} on .* is training in"), Run.open(tmp_path / "run"):
        pass
    process.kill()  # SIGKILL: a crash frees the lock
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


def test_temporary_files_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    for name in (".status.json.17.tmp", "checkpoints/.last.ckpt.17.tmp"):
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / "config.yaml").write_text("{}")
    with Run.open(tmp_path):
        assert [path.name for path in tmp_path.rglob("*.tmp")] == []


def test_last_previous_and_best_are_kept(tmp_path: Path) -> None:
    with Run.open(tmp_path) as run:
        assert run.checkpoint_to_resume() is None
        for number in range(4):
            save(run, LAST, number)
        save(run, BEST, 2)
        assert {path.name: path.read_bytes() for path in run.list_checkpoints()} == {
            LAST: archive(3),
            PREVIOUS: archive(2),
            BEST: archive(2),
        }
        assert run.checkpoint_to_resume() == run.checkpoints / LAST


def test_the_checkpoint_to_resume_is_used(tmp_path: Path) -> None:
    with Run.open(tmp_path) as run:
        for number in range(3):
            save(run, LAST, number)
        save(run, BEST, 1)
        messages: list[str] = []
        for name, next_name in ((LAST, PREVIOUS), (PREVIOUS, BEST)):
            path = run.checkpoints / name
            path.write_bytes(path.read_bytes()[:-100])
            assert run.checkpoint_to_resume(messages.append) == run.checkpoints / next_name
        assert [message.split()[0] for message in messages] == [
            str(run.checkpoints / name) for name in (LAST, LAST, PREVIOUS)
        ]
        assert all("is damaged" in message and "It is not used." in message for message in messages)
        (run.checkpoints / BEST).write_bytes(b"")
        with pytest.raises(UserError, match=r"no checkpoint in .* is intact: restart=true"):
            run.checkpoint_to_resume()


SAVE_AND_DIE = """
import os, signal, sys
from pathlib import Path
from ddpm.runs import Run

def save(function, call):
    calls, real = 0, getattr(os, function)
    def counted(*arguments):
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments)
    with Run.open(directory) as run:
        setattr(os, function, counted)
        run.write_checkpoint(run.checkpoints / "last.ckpt", new)

new = Path("new.pt").read_bytes()
for directory in sorted(Path("runs").iterdir()):
    function, kills, call = directory.name.split("-")
    for _ in range(int(kills)):
        child = os.fork()
        if child == 0:
            save(function, int(call))
            os._exit(0)
        killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
    print(directory.name, int(killed))
"""


def test_a_kill_at_any_moment_of_a_save_leaves_a_checkpoint(tmp_path: Path) -> None:
    """Real processes, killed with SIGKILL before each file operation of a save, once or several times in a row."""
    (tmp_path / "new.pt").write_bytes(archive(99))
    with Run.open(tmp_path / "template") as run:
        save(run, LAST, 1)
        save(run, LAST, 2)
    names = [
        f"{function}-{kills}-{call}" for function in ("fsync", "replace") for kills in (1, 3) for call in (1, 2, 3)
    ]
    for name in names:
        shutil.copytree(tmp_path / "template", tmp_path / "runs" / name)
    done = subprocess.run(
        [sys.executable, "-c", SAVE_AND_DIE], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    killed = dict(line.split() for line in done.stdout.splitlines())
    assert killed == {name: "0" if name.endswith("-3") else "1" for name in names}  # two calls of each in a save
    for name in names:
        with Run.open(tmp_path / "runs" / name) as run:
            messages: list[str] = []
            found = run.checkpoint_to_resume(messages.append)
            assert messages == []
            assert found is not None
            assert found.read_bytes() in ([archive(99)] if killed[name] == "0" else [archive(99), archive(2)])
            assert list(run.directory.rglob("*.tmp")) == []


def test_a_damaged_last_does_not_replace_an_intact_previous(tmp_path: Path) -> None:
    with Run.open(tmp_path / "run") as run:
        save(run, LAST, 1)
        save(run, LAST, 2)
        (run.checkpoints / LAST).write_bytes(archive(2)[:-100])
    with Run.open(tmp_path / "run") as run:
        assert run.checkpoint_to_resume() == run.checkpoints / PREVIOUS
        save(run, LAST, 3)
        assert (run.checkpoints / PREVIOUS).read_bytes() == archive(1)
        save(run, LAST, 4)
        assert (run.checkpoints / PREVIOUS).read_bytes() == archive(3)


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
            assert run.checkpoint_to_resume() == run.checkpoints / LAST
            assert [path.name for path in small.rglob(".*.tmp")] == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_deleted_directory_is_not_written_into(tmp_path: Path) -> None:
    """Another process may have made the directory again."""
    with Run.open(tmp_path / "run") as run:
        save(run, LAST, 1)
        shutil.rmtree(run.directory)
        with Run.open(run.directory) as other:
            save(other, LAST, 2)
            for write in (lambda: save(run, LAST, 3), lambda: run.write_metrics(3, {"loss": 1.0}), run.check_ours):
                with pytest.raises(UserError, match="was deleted while this process trained in it"):
                    write()
            run.end("finished", 3)
            assert (other.checkpoints / LAST).read_bytes() == archive(2)
            assert sorted(path.name for path in other.directory.iterdir()) == [".lock", "checkpoints"]


def test_metrics_of_earlier_processes_stay(tmp_path: Path) -> None:
    with Run.open(tmp_path) as run:
        run.write_metrics(1, {"val/loss": 3.0, "train/loss": 2.0})
        run.write_metrics(2, {"train/loss": 1.0})
        assert run.read_metrics() == {"train/loss": 1.0, "val/loss": 3.0, "step": 2}


def test_a_run_is_finished_at_its_steps_or_beyond(tmp_path: Path) -> None:
    with Run.open(tmp_path) as run:
        run.end("finished", 5)
        assert [Run.read(tmp_path).is_finished(steps) for steps in (4, 5, 6)] == [True, True, False]
        run.end("interrupted", 5, "by SIGTERM")
        again = Run.read(tmp_path)
        assert (again.is_finished(4), again.status.error) == (False, "by SIGTERM")


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP, errno.EROFS])
def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def flock(*args: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(UserError, match=os.strerror(code)), Run.open(tmp_path / "run"):
        pass
    assert not is_locked(tmp_path / "run")


@pytest.mark.filterwarnings("ignore:flock not supported")
def test_without_flock_the_lock_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*args: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("fcntl.flock", flock)
    with Run.open(tmp_path / "run") as run:
        run.end("finished", 3)
        assert is_locked(tmp_path / "run")
        with pytest.raises(UserError, match="is training in"), Run.open(tmp_path / "run"):
            pass
    assert not is_locked(tmp_path / "run")
    assert Run.read(tmp_path / "run").is_finished(3)


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_fsync_takes_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("os.fsync", fsync)
    with Run.open(tmp_path / "run") as run:
        run.end("finished", 3)
    assert Run.read(tmp_path / "run").is_finished(3)


def test_a_lost_write_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("os.fsync", fsync)
    with pytest.raises(UserError, match="Input/output error"), os_errors_in_one_line():
        write_json(tmp_path / "file.json", {})
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_in_the_code_keeps_its_error() -> None:
    with pytest.raises(FileNotFoundError), os_errors_in_one_line():
        Path("/nowhere/at/all").read_text()
