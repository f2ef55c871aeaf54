"""From a command line to a composed config: Hydra does it, and its errors become plain lines."""

import os
import sys
import warnings

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from omegaconf import DictConfig

from ddpm.config import conf_dir
from ddpm.errors import UserError, install_hint
from ddpm.launch.hydra_internals import share_config_store
from ddpm.launch.jobs import run_job
from ddpm.launch.mistakes import UNREADABLE, check_flags, explain, explain_unreadable
from ddpm.launch.overrides import check_choices, named_folders, parse_overrides, with_user_paths
from ddpm.runs.files import os_errors_in_one_line

# By default Ray drops lines that several jobs print, and kills jobs that could be asked to save and to stop.
RAY = {
    "RAY_DEDUP_LOGS": "0",
    "RAY_kill_child_processes_on_worker_exit": "0",
    "RAY_kill_child_processes_on_worker_exit_with_raylet_subreaper": "0",
}


FLAGS_CLASH = ("Only one of --run, ", "The --resolve flag can only")
"""how Hydra's errors about flags that do not go together begin; Hydra raises a bare ValueError"""


def run_with_hydra(command: str | None, arguments: list[str]) -> None:
    """Hand the arguments to Hydra: one job, a sweep, or an answer of Hydra's own (`--cfg`, `--help`, completion).

    Args:
        command: the command to run; None if there is none, as with `--hydra-help`.

    Raises:
        UserError: a mistake of the user, in the config or in a job. Other errors of a job pass unchanged.
    """
    mistake: UserError | None = None
    job_failed = False

    @hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=None)
    def job(config: DictConfig) -> None:
        nonlocal mistake, job_failed
        sys.argv[:] = typed  # Lightning starts the other processes of the job with them
        try:
            with os_errors_in_one_line():
                run_job(command, config)
        except UserError as error:
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                raise  # the launcher must hear that the job failed
            mistake = error  # raised below, because Hydra would print a line of its own
        except Exception:
            job_failed = True
            raise

    # conf/hydra/launcher/ray.yaml has the name of the plugin's schema, so Hydra checks our file against the schema.
    warnings.filterwarnings("ignore", "\n'hydra/launcher/ray' is validated against ConfigStore schema")
    for name, value in RAY.items():
        os.environ.setdefault(name, value)
    share_config_store()
    check_flags(arguments)
    check_choices(parse_overrides(arguments), [conf_dir(), *named_folders(arguments)])
    typed = list(sys.argv)
    sys.argv[1:] = with_user_paths(arguments)  # Hydra reads them there
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises its errors, instead of printing them
    try:
        with os_errors_in_one_line():  # of a sweep, which is no job itself
            job()
    except CompactHydraException as error:
        if job_failed or debugging():  # raised inside a job: the author of that code needs the traceback
            raise
        raise UserError(explain(error, command, arguments)) from error
    except UNREADABLE as error:
        if job_failed or debugging():
            raise
        raise UserError(explain_unreadable(error)) from error
    except ValueError as error:  # flags of Hydra that do not go together
        if job_failed or debugging() or not str(error).startswith(FLAGS_CLASH):
            raise
        raise UserError(str(error)) from error
    except RuntimeError as error:  # Hydra did not find the class of a launcher
        if job_failed or "hydra_ray_launcher" not in str(error):
            raise
        raise UserError(f"hydra/launcher=ray needs Ray: {install_hint('ray')}") from error
    if mistake is not None:
        raise mistake


def debugging() -> bool:
    """Whether to show the traceback of a user's mistake."""
    return os.environ.get("DDPM_DEBUG", "0") not in ("", "0")
