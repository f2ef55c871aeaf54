"""`ddpm evaluate`: the likelihood of a checkpoint and the quality of its samples."""

from ddpm.commands.evaluate.measure import after_sweep, plan, run

__all__ = ["after_sweep", "plan", "run"]
