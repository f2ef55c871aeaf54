"""A run's directory: its name, its state, its checkpoints. Imports without torch."""

from ddpm.runs.checkpoints import check_targets, find_checkpoint, load_checkpoint, trusted_targets
from ddpm.runs.identity import (
    SWEPT_KEYS,
    identity_overrides,
    results_name,
    run_directory,
    run_name,
    task_overrides,
)
from ddpm.runs.log import log_to
from ddpm.runs.run import Run, is_locked
from ddpm.runs.saved_config import check_same_config, leaves, write_config
from ddpm.runs.status import Status, provenance, write_json, write_provenance

__all__ = [
    "SWEPT_KEYS",
    "Run",
    "Status",
    "check_same_config",
    "check_targets",
    "find_checkpoint",
    "identity_overrides",
    "is_locked",
    "leaves",
    "load_checkpoint",
    "log_to",
    "provenance",
    "results_name",
    "run_directory",
    "run_name",
    "task_overrides",
    "trusted_targets",
    "write_config",
    "write_json",
    "write_provenance",
]
