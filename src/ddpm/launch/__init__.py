"""From a composed config to processes: one job, a sweep, a search, Slurm's queue."""
