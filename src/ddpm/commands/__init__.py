"""The commands, one module each; `command.py` says what a command must offer."""

# A new command is one line here, the module ddpm/commands/NAME.py, and conf/NAME.yaml.
COMMANDS = {
    "train": "train a model, or continue a run that was stopped",
    "sample": "draw images from a checkpoint",
    "evaluate": "measure a checkpoint: likelihood in bits/dim, and sample quality",
    "denoise": "take a digit to noise and back: with the true x_0, and with the network",
    "report": "compare runs, of a sweep or any others: tables, plots, one HTML page",
    "export": "write a model as a folder to pass on: weights, config, model card",
}
