"""How far a training has come."""

import lightning as L


def batches_done(trainer: L.Trainer) -> int:
    """Batches that the run has trained on, over all epochs and all the processes that went on with it.

    Lightning's `current_epoch` and `batch_idx` depend on where in its loop a checkpoint was made; this does not.
    """
    return trainer.fit_loop.epoch_loop.batch_progress.total.processed  # type: ignore[attr-defined]
