"""A search: a sweep whose jobs Optuna chooses, in a study that all who ask for the same share. Imports no torch."""

import warnings

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "Deprecated API features")  # of SQLAlchemy 1.4, by Optuna 2
    import optuna

optuna.logging.set_verbosity(optuna.logging.WARNING)
