"""The commands, a file each: `run(cfg)` does the work of `ddpm COMMAND`."""
