import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from ddpm.training.callbacks import BestCheckpoint


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_the_best_is_still_known_after_the_run_was_moved(tmp_path):
    before, after = (BestCheckpoint(dirpath=tmp_path / place, filename="best") for place in ("before", "after"))
    path = str(tmp_path / "before" / "best.ckpt")
    before.best_model_path = before.kth_best_model_path = path
    before.best_model_score = torch.tensor(0.5)
    before.best_k_models = {path: torch.tensor(0.5)}
    after.load_state_dict(before.state_dict())
    moved = str(tmp_path / "after" / "best.ckpt")
    assert (after.best_model_path, after.kth_best_model_path) == (moved, moved)
    assert after.best_k_models == {moved: torch.tensor(0.5)}
    assert after.best_model_score == 0.5

    plain = ModelCheckpoint(dirpath=tmp_path / "after", filename="best")
    plain.load_state_dict(before.state_dict())
    assert plain.best_model_score is None  # what it is about
