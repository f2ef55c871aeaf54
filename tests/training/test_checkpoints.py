"""Models of a config and of a checkpoint. A checkpoint describes its model and runs no code of its own."""

import sys
from pathlib import Path

import jaxtyping
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from small import Shades, fit, quiet_trainer, small_model
from torch import nn

from ddpm.config import conf_dir, trusted_targets
from ddpm.diffusion import DDIM
from ddpm.errors import UserError
from ddpm.training import DDPM, build_model, load_model

SMALL = [
    "data=image_folder", "data.root=pictures", "data.image_size=8", "data.image_channels=1",
    "model=unet_tiny", "model.channels=8", "model.multipliers=[1,2]", "model.attention=[]",
    "schedule=cosine", "schedule.num_steps=20",
]  # fmt: skip


def config_of(*overrides):
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = OmegaConf.to_container(compose("train", [*SMALL, *overrides]), resolve=True)
    assert isinstance(config, dict)
    return config


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model after three steps, and its checkpoint."""
    overrides = ("objective.prediction=v", "diffusion.variance=large", "model.dropout=0.1", "optimizer.lr=0.05")
    model = build_model(config_of(*overrides, "optimizer.warmup_steps=0"))
    path = tmp_path_factory.mktemp("run") / "last.ckpt"
    fit(model, 3, data=Shades()).save_checkpoint(path)
    return model, path


def test_the_path_is_all_that_is_needed(trained):
    model, path = trained
    loaded = load_model(path)
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name
    assert (loaded.diffusion.prediction, loaded.diffusion.variance) == ("v", "large")
    assert torch.equal(loaded.diffusion.alpha_bars, model.diffusion.alpha_bars)
    assert not any(module.training for module in loaded.modules())
    for sampler in (None, DDIM(5)):
        assert torch.equal(loaded.sample(3, sampler, seed=1), model.sample(3, sampler, seed=1))
    assert not torch.equal(loaded.sample(3, seed=1), build_model(model.hparams["config"]).sample(3, seed=1))


def test_a_checkpoint_is_plain_data(trained):
    checkpoint = torch.load(trained[1], weights_only=True)
    assert checkpoint["hyper_parameters"] == {"config": config_of(
        "objective.prediction=v", "diffusion.variance=large", "model.dropout=0.1", "optimizer.lr=0.05",
        "optimizer.warmup_steps=0",
    )}  # fmt: skip


@pytest.fixture
def mine(monkeypatch):
    """Makes this file a module `mine`, from which Hydra can import."""
    monkeypatch.setitem(sys.modules, "mine", sys.modules[__name__])


def touch(path):
    Path(path).touch()


def changed(trained, tmp_path, values):
    """The checkpoint with other values in its config."""
    checkpoint = torch.load(trained[1], weights_only=True)
    for place, value in values.items():
        *parents, key = place.split(".")
        node = checkpoint["hyper_parameters"]["config"]
        for parent in parents:
            node = node[parent]
        node[key] = value
    torch.save(checkpoint, tmp_path / "changed.ckpt")
    return tmp_path / "changed.ckpt"


@pytest.mark.parametrize("place", ["module", "module.extra", "model", "diffusion", "diffusion.betas", "model.channels"])
def test_a_checkpoint_that_asks_for_something_else_is_refused(trained, tmp_path, mine, place):
    touched = tmp_path / "touched"
    path = changed(trained, tmp_path, {place: {"_target_": "mine.touch", "_args_": [str(touched)]}})
    with pytest.raises(UserError, match=r"asks for 'mine\.touch'"):
        load_model(path)
    assert not touched.exists()


def test_an_interpolation_that_would_become_a_target_is_refused(trained, tmp_path):
    path = changed(trained, tmp_path, {"model.channels": "${oc.env:HOME}"})
    with pytest.raises(UserError, match="unresolved value"):
        load_model(path)


def test_the_rest_of_its_config_is_not_built(trained, tmp_path, mine):
    touched = tmp_path / "touched"
    parts = ("data", "objective", "objective.loss", "optimizer.algorithm", "callbacks", "trainer", "logger")
    values = {f"{part}._target_": "mine.touch" for part in parts}
    values |= {f"{part}.path": str(touched) for part in parts}
    load_model(changed(trained, tmp_path, values))
    assert not touched.exists()


def test_weights_of_another_network_are_a_users_error(trained, tmp_path):
    with pytest.raises(UserError, match="are of another network"):
        load_model(changed(trained, tmp_path, {"model.channels": 12}))


class Doubled(nn.Module):
    """A network of the user's own. Its output has the wrong shape."""

    def __init__(self, **kwargs):
        super().__init__()
        self.layer = nn.Conv2d(1, 1, 1)

    def forward(self, x, t):
        return torch.cat([self.layer(x)] * 2, dim=-1)


def test_a_class_of_the_users_own_is_built_if_a_yaml_of_theirs_names_it(trained, tmp_path, mine):
    path = changed(trained, tmp_path, {"model._target_": "mine.Doubled"})
    with pytest.raises(UserError, match=r"asks for 'mine\.Doubled'"):
        load_model(path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("_target_: mine.Doubled\n")
    with pytest.raises(UserError, match=r"layer\.weight must be of shape"):  # it was built
        load_model(path, trusted=trusted_targets([conf_dir(), tmp_path]))


def test_a_network_that_changes_the_shape_is_refused(mine):
    with pytest.raises(UserError, match=r"\[1, 1, 8, 8\] into \[1, 1, 8, 16\]: both must be equal"):
        build_model(config_of("model._target_=mine.Doubled"))


class Dict(Doubled):
    """A network whose output is no tensor."""

    def forward(self, x, t):
        return {"sample": self.layer(x)}


def test_a_network_that_returns_an_object_is_refused(mine):
    with pytest.raises(UserError, match="the network returns a dict, and one tensor"):
        build_model(config_of("model._target_=mine.Dict"))


@pytest.mark.parametrize("size", ["9", "[8,7]"])
def test_an_image_that_cannot_be_halved_is_refused(size):
    with pytest.raises(UserError, match="needs height and width divisible by 2"):
        build_model(config_of(f"data.image_size={size}"))


@pytest.fixture
def as_users_run_it():
    """Without the run-time checks of annotations, which would refuse a bad choice before our own message."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.attention=[5]", "attention names level"),
        ("diffusion.variance=median", "variance=median is none of"),
        ("objective.prediction=y", "prediction=y is none of"),
        ("diffusion.variance=optimal", "needs x0_mse"),
        ("schedule.num_steps=0", "at least (one step|1)"),
        ("seed=-1", "seed"),
    ],
)
def test_other_settings_that_make_no_model_are_users_errors(as_users_run_it, override, words):
    with pytest.raises(UserError, match=words):
        build_model(config_of(override))


def test_the_seed_makes_the_weights():
    def weights(*overrides):
        model = build_model(config_of(*overrides))
        return nn.utils.parameters_to_vector(model.network.parameters())

    assert torch.equal(weights("seed=3"), weights("seed=3"))
    assert not torch.equal(weights("seed=3"), weights("seed=4"))


def test_a_new_average_is_the_network():
    model = build_model(config_of())
    for name, weight in model.network.state_dict().items():
        assert torch.equal(weight, model.ema.module.state_dict()[name])


def test_a_model_made_in_python_loads_by_lightnings_own_way(tmp_path):
    fit(small_model(seed=1), 2).save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(UserError, match="does not hold the config"):
        load_model(tmp_path / "a.ckpt")
    with pytest.raises(UserError, match=r"ddpm\.load\(path\)"):
        DDPM.load_from_checkpoint(tmp_path / "a.ckpt")
    other = small_model(seed=1)
    loaded = DDPM.load_from_checkpoint(
        tmp_path / "a.ckpt", network=other.network, diffusion=other.diffusion, image_shape=other.image_shape
    )
    weights = torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(weights[name], weight) for name, weight in loaded.state_dict().items())


@pytest.fixture(scope="module")
def min_snr(tmp_path_factory):
    """A run's model with another objective, its checkpoint, and its validation loss."""
    model = build_model(config_of("objective=min_snr", "optimizer.warmup_steps=2", "optimizer.lr=0.01"))
    path = tmp_path_factory.mktemp("min_snr") / "last.ckpt"
    trainer = fit(model, 2, data=Shades())
    trainer.save_checkpoint(path)
    return model, path, validation_loss(model)


def validation_loss(model):
    trainer = quiet_trainer(limit_val_batches=None)
    return trainer.validate(model, Shades(), verbose=False)[0]["val/loss"]


def test_a_loaded_model_validates_with_the_objective_of_its_run(min_snr):
    _, path, loss = min_snr
    assert validation_loss(load_model(path)) == loss


def test_a_loaded_model_trains_on_with_the_settings_of_its_run(min_snr, tmp_path):
    """The user's own Trainer continues it, and what that saves loads too."""
    model, path, _ = min_snr
    fit(model, 4, data=Shades(), resume=path)
    loaded = load_model(path).train()
    trainer = fit(loaded, 4, data=Shades(), resume=path)
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.01
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name
    trainer.save_checkpoint(tmp_path / "mine.ckpt")
    assert torch.equal(load_model(tmp_path / "mine.ckpt").sample(1, seed=0), loaded.eval().sample(1, seed=0))


@pytest.mark.parametrize(
    ("part", "node", "reason"),
    [
        ("objective.loss", {"_target_": "nobody.knows.This"}, r"asks for 'nobody\.knows\.This'"),
        ("objective.timesteps", {"_target_": "nobody.knows.This"}, r"asks for 'nobody\.knows\.This'"),
        ("optimizer.algorithm", {"_target_": "nobody.knows.This"}, r"asks for 'nobody\.knows\.This'"),
        ("objective.loss", {"_target_": "mine.NeedsAFile"}, "no such teacher"),
    ],
)
def test_a_model_samples_without_what_trains_it_and_gives_the_reason_when_it_trains(
    trained, tmp_path, mine, part, node, reason
):
    (tmp_path / "mine.yaml").write_text("_target_: mine.NeedsAFile\n")
    path = changed(trained, tmp_path, {part: node})
    model = load_model(path, trusted=trusted_targets([conf_dir(), tmp_path]))
    assert model.sample(1, steps=3, seed=0).isfinite().all()
    with pytest.raises(UserError, match=reason):
        fit(model, 1)


class NeedsAFile:
    """An objective that cannot be built: not a mistake in the config, but an error of its own."""

    def __init__(self):
        raise OSError("no such teacher")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("module._target_=torch.nn.Identity", r"module\._target_=torch\.nn\.Identity must be DDPM or a subclass"),
        ("+module.unknown=1", "module: .*unexpected keyword argument 'unknown'"),
        ("module._target_=nobody.knows.This", "Error locating target 'nobody.knows.This': is its folder on"),
    ],
)
def test_a_mistake_in_the_module_is_a_users_error(override, words):
    with pytest.raises(UserError, match=words):
        build_model(config_of(override))
