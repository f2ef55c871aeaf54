"""How a process knows whether it is a task of a Slurm job."""

import pytest
from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment
from omegaconf import OmegaConf

from ddpm.errors import UserError
from ddpm.runs import slurm
from ddpm.training.hardware import check_tasks, cluster_environment

ASKED = {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_PROCID": "0"}


@pytest.mark.parametrize(
    ("variables", "is_task", "environment"),
    [
        ({}, False, []),
        ({**ASKED, "SLURM_STEP_NUM_TASKS": "2", "SLURM_JOB_NAME": "ddpm-train"}, True, [SLURMEnvironment]),
        ({**ASKED, "SLURM_JOB_NAME": "ddpm-train"}, False, [LightningEnvironment]),  # sbatch without srun
        ({**ASKED, "SLURM_JOB_NAME": "interactive"}, False, [LightningEnvironment]),  # a shell from salloc
        ({"SLURM_PROCID": "0", "SLURM_JOB_NAME": "script.sh"}, False, []),  # sbatch without a number of tasks
    ],
)
def test_a_process_is_a_task_if_srun_started_it(monkeypatch, variables, is_task, environment):
    for name in ("SLURM_NTASKS", "SLURM_NTASKS_PER_NODE", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_JOB_NAME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert slurm.is_task() == is_task
    assert [type(found) for found in cluster_environment()] == environment
    trainer = {"accelerator": "cpu", "num_nodes": 1, "precision": "32-true", "strategy": "auto"}
    check_tasks(OmegaConf.create({**trainer, "devices": 2}))  # Lightning starts both processes
    if environment == [LightningEnvironment]:
        with pytest.raises(UserError, match=r"2 tasks.*without srun 1 would train"):
            check_tasks(OmegaConf.create({**trainer, "devices": 1}))


def test_without_slurm_no_job_is_preempted_or_requeued(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert not slurm.means_to_go_on()
    assert not slurm.is_requeued()
