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
def test_srun_starts_all_processes_of_a_job(monkeypatch, variables, is_task):
    for name in ("SLURM_NTASKS", "SLURM_PROCID", "SLURM_JOB_NAME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert slurm.is_task() == is_task


def test_outside_of_slurm_no_signal_is_its_warning(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert not slurm.means_to_go_on()
    assert not slurm.is_requeued()
