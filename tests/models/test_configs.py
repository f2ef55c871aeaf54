from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from ddpm.models import UNet

MODELS = sorted((Path(__file__).parents[2] / "conf" / "model").glob("unet_*.yaml"))


@pytest.mark.parametrize("image_channels", [1, 3])
@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_every_size_takes_28_by_28(path, image_channels, record_property):
    config = OmegaConf.create({"data": {"image_channels": image_channels}, "model": OmegaConf.load(path)})
    network = instantiate(config.model).eval()
    assert isinstance(network, UNet)
    record_property("parameters", sum(p.numel() for p in network.parameters()))
    x = torch.randn(1, image_channels, 28, 28)
    with torch.inference_mode():
        assert network(x, torch.tensor([500])).shape == x.shape


@pytest.mark.parametrize("channels", [8, 20, 48])
def test_channels_alone_sets_the_width(channels):
    config = OmegaConf.load(MODELS[-1])
    network = instantiate(config, image_channels=1, channels=channels)
    assert network.input.weight.shape[0] == channels


def test_there_are_four_networks():
    assert [path.stem for path in MODELS] == ["unet_base", "unet_patches", "unet_small", "unet_tiny"]
