"""A run's directory: its name, its state, its checkpoints. Imports no torch."""

from ddpm.runs.checkpoints import ckpt_override, config_of, find_checkpoint, load_checkpoint
from ddpm.runs.identity import (
    SWEPT_KEYS,
    identity_overrides,
    overrides_with_effect,
    results_directory,
    results_name,
    run_directory,
    run_name,
    run_of,
    task_overrides,
)
from ddpm.runs.log import log_to
from ddpm.runs.run import Run, is_locked
from ddpm.runs.saved_config import check_same_config, write_config
from ddpm.runs.status import Status, provenance, write_json, write_provenance

__all__ = [
    "SWEPT_KEYS",
    "Run",
    "Status",
    "check_same_config",
    "ckpt_override",
    "config_of",
    "find_checkpoint",
    "identity_overrides",
    "is_locked",
    "load_checkpoint",
    "log_to",
    "overrides_with_effect",
    "provenance",
    "results_directory",
    "results_name",
    "run_directory",
    "run_name",
    "run_of",
    "task_overrides",
    "write_config",
    "write_json",
    "write_provenance",
]
