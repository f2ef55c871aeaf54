"""Weights of another network as the start of a run."""

import copy
import re

import pytest
import torch
from hand_made import composed
from omegaconf import OmegaConf
from small import trained_a_little

from ddpm.errors import UserError
from ddpm.runs.checkpoints import FORMAT
from ddpm.training.building import build_model
from ddpm.training.weights import start_from

SMALL = ("data=mnist_mini", "model=unet_tiny", "model.channels=8", "model.multipliers=[1,2]", "model.attention=[]")


def model_of(*overrides, **data):
    config = OmegaConf.to_container(composed(*SMALL, *overrides), resolve=True)
    config["data"] |= data  # which mnist_mini does not offer
    config["model"]["image_channels"] = config["data"]["image_channels"]
    return build_model(config)


@pytest.fixture(scope="module")
def grey(tmp_path_factory):
    """A model of grey images with random weights, and its checkpoint."""
    model, path = trained_a_little(model_of()), tmp_path_factory.mktemp("grey") / "last.ckpt"
    torch.save({"format": FORMAT, "global_step": 3, "state_dict": model.state_dict()}, path)
    return model, path


def check_taken(network, source, initial) -> set[str]:
    """Check that each weight with a name and shape of `source` is that of `source`. Return the names of the others."""
    left_out = set()
    for name, weight in network.state_dict().items():
        theirs = source.state_dict().get(name)
        fits = theirs is not None and theirs.shape == weight.shape
        assert torch.equal(weight, theirs if fits else initial.state_dict()[name]), name
        left_out |= set() if fits else {name}
    return left_out


def test_another_image_size_takes_all_weights(grey):
    model = model_of(image_size=32)
    initial = copy.deepcopy(model)
    assert start_from(model, grey[1], partial=False) == []
    assert check_taken(model.network, grey[0].network, initial.network) == set()


@pytest.mark.parametrize(
    ("overrides", "data", "misfits"),
    [
        ([], {"image_channels": 3}, ["input.weight", "output.2.weight", "output.2.bias"]),
        (["model.num_classes=10"], {}, ["embed_label.weight"]),
        (["model.multipliers=[1,2,2]"], {}, None),
    ],
)
def test_another_network_takes_the_weights_that_fit(grey, overrides, data, misfits):
    model = model_of(*overrides, **data)
    initial = copy.deepcopy(model)
    with pytest.raises(UserError, match=r"must be of shape .*\n.*init_from_partial=true") as error:
        start_from(model, grey[1], partial=False)
    assert len(str(error.value).splitlines()) == 2
    check_taken(model, initial, initial)  # nothing has changed

    lines = start_from(model, grey[1], partial=True)
    assert len(lines) <= 3
    left_out = check_taken(model.network, grey[0].network, initial.network)
    assert check_taken(model.ema, grey[0].ema, initial.ema)
    assert left_out
    if misfits is None:
        assert re.search(r" and \d+ more keep their initial values", lines[1])
    else:
        assert left_out == set(misfits)
        assert all(f"network.{name}" in lines[1] for name in misfits)


def test_a_network_that_takes_nothing_is_refused(grey):
    with pytest.raises(UserError, match="no weight fits"):
        start_from(model_of("model.channels=24", image_channels=3), grey[1], partial=True)


def test_weights_that_are_not_finite_are_refused(grey, tmp_path):
    content = torch.load(grey[1], weights_only=True)
    content["state_dict"]["network.input.bias"][0] = torch.nan
    torch.save(content, tmp_path / "bad.ckpt")
    with pytest.raises(UserError, match="not finite"):
        start_from(model_of(image_channels=3), tmp_path / "bad.ckpt", partial=True)
