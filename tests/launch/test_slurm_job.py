"""How a process knows whether it is a task of a Slurm job."""

import pytest

from ddpm.runs import slurm


@pytest.mark.parametrize(
    ("variables", "is_task"),
    [
        ({}, False),
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "ddpm-train"}, True),
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "interactive"}, False),  # a shell from salloc
        ({"SLURM_PROCID": "0", "SLURM_JOB_NAME": "script.sh"}, False),  # sbatch without srun
    ],
)
def test_a_process_is_a_task_if_srun_started_it(monkeypatch, variables, is_task):
    for name in ("SLURM_NTASKS", "SLURM_PROCID", "SLURM_JOB_NAME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert slurm.is_task() == is_task


def test_without_slurm_no_job_is_preempted_or_requeued(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert not slurm.means_to_go_on()
    assert not slurm.is_requeued()
