"""`ddpm evaluate`: the likelihood of a checkpoint and the quality of its samples."""

from ddpm.commands.evaluate.entry import after_sweep, plan, run

__all__ = ["after_sweep", "plan", "run"]
