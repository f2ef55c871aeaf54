"""What a job in Slurm's queue prints and returns, from files such as submitit writes; Slurm is not needed."""

import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra.core.utils import JobStatus

from ddpm.errors import UserError
from ddpm.launch import slurm_queue
from ddpm.launch.slurm_queue import QueuedJob


def queued(folder: Path, results: list[tuple[str, str | None] | None]) -> QueuedJob:
    """A job with one process for each of `results`, as submitit pickles them; None if a process wrote nothing."""
    paths = [SimpleNamespace(result_pickle=folder / f"{i}.pkl", stderr=folder / "log.err") for i in range(len(results))]
    for path, result in zip(paths, results, strict=True):
        if result is not None:
            path.result_pickle.write_bytes(pickle.dumps(result))
    tasks = [SimpleNamespace(paths=path) for path in paths]
    return QueuedJob(SimpleNamespace(task=tasks.__getitem__, num_tasks=len(tasks)), "7_0 seed=1")


def test_each_state_is_printed_once_and_then_the_result(tmp_path, capsys):
    job = queued(tmp_path, [None])
    for state in ("PENDING", "PENDING", "RUNNING", "COMPLETED"):
        job.poll(state)
        assert job.result is None
    (tmp_path / "0.pkl").write_bytes(pickle.dumps(("success", None)))
    job.poll("COMPLETED")
    assert job.result is not None
    assert job.result.status == JobStatus.COMPLETED
    assert capsys.readouterr().out.splitlines() == [
        "7_0 seed=1: pending", "7_0 seed=1: running", "7_0 seed=1: finished",
    ]  # fmt: skip


def test_an_error_of_any_process_is_the_error_of_the_job(tmp_path, capsys):
    error = "Traceback (most recent call last):\n  …\nddpm.errors.UserError: no checkpoint is intact\n"
    job = queued(tmp_path, [("success", None), ("error", error), ("error", error)])
    job.poll("COMPLETING")
    assert job.result is not None
    with pytest.raises(UserError, match=r"^no checkpoint is intact$"):
        _ = job.result.return_value
    assert "7_0 seed=1: failed: no checkpoint is intact\n" in capsys.readouterr().out


def test_a_job_that_was_killed_shows_the_end_of_its_log(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(slurm_queue, "FILE_DELAY", 0.0)
    (tmp_path / "log.err").write_text("".join(f"line {i}\n" for i in range(9)))
    job = queued(tmp_path, [None])
    job.poll("OUT_OF_MEMORY")
    job.poll("OUT_OF_MEMORY")
    output = capsys.readouterr().out
    assert f"failed: Slurm says it is OUT_OF_MEMORY; its log {tmp_path}/log.err ends with\nline 4\n" in output
    assert job.result is not None
    assert job.result.status == JobStatus.FAILED
