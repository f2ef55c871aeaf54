"""A search: a sweep whose jobs Optuna chooses. All processes that ask for the same search share its study."""

import optuna

optuna.logging.set_verbosity(optuna.logging.WARNING)
