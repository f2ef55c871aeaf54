"""The private parts of Lightning that training needs, each with the reason."""

import lightning as L


def logged_step(trainer: L.Trainer) -> int:
    """The x-axis of Lightning's own training curves: the optimizer steps before the current one.

    `trainer.global_step` counts the current step too once the optimizer has stepped, so curves logged by us and by
    Lightning would lie one step apart.
    """
    return trainer.fit_loop.epoch_loop._batches_that_stepped
