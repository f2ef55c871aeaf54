"""A U-Net of diffusers as the network of a run."""

import pytest
import torch

import ddpm

pytest.importorskip("diffusers")
pytestmark = pytest.mark.slow

SMALL = (
    "model=diffusers", "model.block_out_channels=[8,8]", "model.norm_num_groups=4", "model.layers_per_block=1",
    "schedule.num_steps=30", "data=mnist_mini", "data.batch_size=4", "trainer=cpu", "debug=fast", "logger=none",
)  # fmt: skip


def test_it_is_trained_and_sampled_from(ddpm_here, tmp_path):
    done = ddpm_here("train", *SMALL)
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "outputs" / "train" / "default").iterdir()
    model = ddpm.load(run)
    first, again = (model.sample(2, steps=3, seed=0) for _ in range(2))
    assert first.shape == (2, 1, 28, 28)
    assert torch.equal(first, again)

    from diffusers import UNet2DModel

    theirs = UNet2DModel.from_config(model.ema.module.config)
    theirs.load_state_dict(model.ema.module.state_dict())
    x, t = torch.randn(2, 1, 28, 28), torch.tensor([0, 9])
    torch.testing.assert_close(theirs.eval()(x, t).sample, model.ema(x, t))


def test_labels_condition_it():
    from ddpm.models.diffusers import DiffusersUNet

    torch.manual_seed(0)
    network = DiffusersUNet(
        num_classes=3, in_channels=1, out_channels=1, block_out_channels=[8], down_block_types=["DownBlock2D"],
        up_block_types=["UpBlock2D"], norm_num_groups=4,
    )  # fmt: skip
    x, t = torch.randn(1, 1, 8, 8).expand(2, 1, 8, 8), torch.zeros(2, dtype=torch.int64)
    one, none = network(x, t, labels=torch.tensor([0, 3]))
    assert not torch.equal(one, none)
    torch.testing.assert_close(none, network(x, t)[0])
