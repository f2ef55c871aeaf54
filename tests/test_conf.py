"""Every file of the config tree composes, and builds what it says; every choice works with every other."""

from functools import cache
from itertools import product

import pytest
import torch
from closed_forms import network_that_returns
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import get_object
from omegaconf import OmegaConf
from small import IMAGE_SHAPE, small_unet, trained_a_little

from ddpm.__main__ import COMMANDS
from ddpm.config import build, conf_dir, trusted_targets
from ddpm.diffusion import GaussianDiffusion
from ddpm.diffusion.samplers import SPACINGS
from ddpm.errors import UserError
from ddpm.training import DDPM, build_model

CONF = conf_dir()
OPTIONS = sorted(
    (path.parent.relative_to(CONF).as_posix(), path.stem)
    for path in CONF.rglob("*.yaml")
    if path.parent != CONF and path.relative_to(CONF).parts[0] != "hydra"
)
NEEDED = ["data.root=pictures"]  # what an option leaves to the user


@cache
def composed(root, *overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(root, list(overrides))


def options(group):
    return [name for folder, name in OPTIONS if folder == group]


def test_there_is_a_root_for_each_command():
    assert {path.stem for path in CONF.glob("*.yaml")} == set(COMMANDS)


@pytest.mark.parametrize("root", COMMANDS)
def test_every_root_composes(root):
    config = composed(root)
    assert OmegaConf.missing_keys(config) <= {"ckpt", "runs"}
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    assert not {"hydra", "defaults"} & plain.keys()
    keys = [key.removesuffix("=") for key in config.get("not_identity", []) if key != "sweep="]
    unknown = [key for key in keys if OmegaConf.select(config, key, default="absent") == "absent"]
    assert unknown == []  # a key that is spelt wrongly would make another run of each device


@pytest.mark.parametrize(
    ("group", "name"), [option for option in OPTIONS if option[0] not in ("mode", "sweep", "paths", "data/base")]
)
def test_every_option_builds_what_it_says(group, name, tmp_path):
    """A run with it, as `ddpm train` builds it, except for the images."""
    small = [] if group in ("model", "experiment") else ["model=unet_tiny", "model.channels=8"]
    needed = NEEDED if name == "image_folder" else []
    config = composed("train", *small, f"{group}={name}", *needed).copy()
    config.paths.run = str(tmp_path)
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    model = build_model(plain)
    assert model.image_shape == build(config.data).image_shape
    assert model.configure_optimizers()["optimizer"].param_groups
    callbacks = [build(callback) for callback in config.callbacks.values()]
    config.trainer.accelerator = "cpu"  # the others may not be here
    trainer = build(
        config.trainer,
        precision="32-true",
        callbacks=callbacks,
        logger=build(config.logger) if config.logger else False,
    )
    assert [type(callback) for callback in callbacks if callback not in trainer.callbacks] == []
    assert list(tmp_path.iterdir()) == []  # nothing is written by building alone


@pytest.mark.parametrize(("group", "root"), [("sampler", "sample"), ("data", "evaluate"), ("schedule", "denoise")])
def test_options_work_in_the_other_roots(group, root):
    for name in options(group):
        node = composed(root, f"{group}={name}", *(NEEDED if name == "image_folder" else []))[group]
        assert OmegaConf.to_container(node)["_target_"] == composed("train", f"{group}={name}", *(
            NEEDED if name == "image_folder" else []))[group]["_target_"]  # fmt: skip


@pytest.mark.parametrize("name", options("mode"))
def test_every_mode_of_sampling_builds(name):
    assert callable(build(composed("sample", f"mode={name}").mode))


@pytest.mark.parametrize("name", options("sweep"))
def test_every_value_of_a_named_sweep_composes(name):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        params = compose("train", [f"+sweep={name}"], return_hydra_config=True).hydra.sweeper.params
    assert len(params) > 0
    for key, values in params.items():
        override = OverridesParser.create().parse_override(f"{key}={values}")
        among = override.value()
        for value in override.sweep_string_iterator() if override.is_discrete_sweep() else (among.start, among.end):
            composed("train", f"{key}={value}")


@pytest.mark.parametrize("target", sorted(trusted_targets([CONF])))
def test_every_class_that_a_config_names_is_there(target):
    assert callable(get_object(target))


@pytest.fixture(scope="module")
def images():
    """x_0 and noise for each of the 1000 timesteps."""
    draws = torch.Generator().manual_seed(0)
    return torch.rand(1000, 1, 2, 2, generator=draws) * 2 - 1, torch.randn(1000, 1, 2, 2, generator=draws)


@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v", "mean"])
@pytest.mark.parametrize("objective", options("objective"))
@pytest.mark.parametrize("schedule", options("schedule"))
def test_every_schedule_prediction_loss_and_variance_go_together(images, schedule, objective, prediction):
    config = composed("train", f"schedule={schedule}", f"objective={objective}").copy()
    config.objective.prediction = prediction
    loss, t = build(config.objective.loss), torch.arange(1000)
    x0, noise = images
    for variance in ("small", "large"):
        config.diffusion.variance = variance
        diffusion = build(config.diffusion)
        assert (diffusion.prediction, diffusion.variance, diffusion.num_steps) == (prediction, variance, 1000)
        x_t = diffusion.q_sample(x0, t, noise)
        target = diffusion.target(x0, x_t, t, noise)
        losses = loss(network_that_returns(target + 0.1), diffusion, x0, t, noise)
        assert losses.shape == (1000,)
        assert losses.isfinite().all()
        assert (losses > 0).all()
        assert loss(network_that_returns(target), diffusion, x0, t, noise).max() < 1e-3 * losses.max()


@pytest.mark.parametrize("draw", options("objective/timesteps"))
def test_every_draw_reaches_every_timestep(draw):
    draws = build(composed("train", f"objective/timesteps={draw}").objective.timesteps)
    t = draws(4000, 40, torch.Generator().manual_seed(0))
    assert t.dtype == torch.int64
    assert t.unique().tolist() == list(range(40))


ZERO_SNR = ["schedule=cosine", "schedule.max_beta=1.0"]


def test_zero_terminal_snr_is_refused_with_epsilon():
    with pytest.raises(UserError, match=r"ε-prediction cannot represent a zero terminal .* Use prediction v or x0"):
        build(composed("train", *ZERO_SNR).diffusion)


@pytest.mark.parametrize("prediction", ["v", "x0"])
def test_zero_terminal_snr_works_with_others(prediction):
    diffusion = build(composed("train", *ZERO_SNR, f"objective.prediction={prediction}").diffusion)
    assert diffusion.alpha_bars[-1] == 0
    network = trained_a_little(small_unet())
    model = DDPM(network, diffusion, IMAGE_SHAPE)
    samples = model.sample(2, build(composed("sample", "sampler=ddim", "sampler.steps=10").sampler), seed=0)
    assert samples.isfinite().all()


def test_too_few_steps_for_the_linear_schedule_name_the_remedy():
    with pytest.raises(UserError, match="rescale=False"):
        build(composed("train", "schedule.num_steps=20").diffusion)


@pytest.mark.parametrize(("name", "spacing"), list(product(options("sampler"), SPACINGS)))
def test_every_sampler_takes_every_spacing(name, spacing):
    """A network that is not trained; 10 of 1000 steps."""
    sampler = build(composed("sample", f"sampler={name}", "sampler.steps=10", f"sampler.spacing={spacing}").sampler)
    diffusion = GaussianDiffusion(build(composed("train").schedule))
    timesteps = sampler.timesteps(diffusion)
    assert len(timesteps) == 10
    assert timesteps[-1] == 999
    model = DDPM(trained_a_little(small_unet()), diffusion, IMAGE_SHAPE)
    samples = model.sample(2, sampler, seed=0)
    assert samples.isfinite().all()
    assert samples.abs().max() <= 1
    assert samples.std() > 0.1
