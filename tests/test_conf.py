"""Every YAML composes and builds what it names, and the choices work together."""

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
from ddpm.config import build, conf_dir, leaves, trusted_targets
from ddpm.diffusion import GaussianDiffusion
from ddpm.diffusion.samplers import SPACINGS
from ddpm.errors import UserError
from ddpm.training import DDPM, build_model
from ddpm.training.loggers import check_loggers

CONF = conf_dir()
OPTIONS = sorted(
    (path.parent.relative_to(CONF).as_posix(), path.stem)
    for path in CONF.rglob("*.yaml")
    if path.parent != CONF and path.relative_to(CONF).parts[0] != "hydra"
)
TESTED_ALONE = {
    "data",
    "data/base",
    "experiment/ablation",
    "features",
    "guidance",
    "logger",
    "measures",
    "mode",
    "objective",
    "objective/timesteps",
    "paths",
    "sampler",
    "schedule",
    "sweep",
}
# By +sweep=NAME, by a search, by data=image_folder, and by the user.
ADDED_LATER = ("sweep=", "callbacks.pruning", "data.cache", "trainer.max_time", "trainer.detect_anomaly")
NEEDED = {"image_folder": ["data.root=pictures"]}  # values without a default


@cache
def composed(root, *overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(root, list(overrides))


def options(group):
    return [name for folder, name in OPTIONS if folder == group]


@pytest.mark.parametrize("root", COMMANDS)
def test_every_root_composes(root):
    config = composed(root)
    assert OmegaConf.missing_keys(config) <= {"ckpt", "runs", "to"}
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    assert not {"hydra", "defaults"} & plain.keys()
    keys = [key.removesuffix("=") for key in config.get("not_identity", []) if key not in ADDED_LATER]
    unknown = [key for key in keys if OmegaConf.select(config, key, default="absent") == "absent"]
    assert unknown == []  # with a misspelled key, a run on another device would be another run


@pytest.mark.parametrize("name", options("logger"))
def test_every_logger_is_one_that_a_run_takes(name):
    if name in ("wandb", "mlflow"):
        pytest.importorskip(name)
    check_loggers(composed("train", f"logger={name}").logger)


@pytest.mark.parametrize(("group", "name"), [option for option in OPTIONS if option[0] not in TESTED_ALONE])
def test_every_option_builds(group, name, tmp_path):
    """Build all of a run with the option, as `ddpm train` does, except for the images."""
    if name == "diffusers":
        pytest.importorskip(name)
    small = [] if group in ("model", "experiment") else ["model=unet_tiny", "model.channels=8"]
    config = composed("train", *small, f"{group}={name}").copy()
    config.paths.run = str(tmp_path)
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    model = build_model(plain)
    assert model.image_shape == build(config.data).image_shape
    assert model.configure_optimizers()["optimizer"].param_groups
    callbacks = [build(callback) for callback in config.callbacks.values()]
    config.trainer.accelerator = "cpu"  # this machine may have no other
    trainer = build(
        config.trainer,
        precision="32-true",
        callbacks=callbacks,
        logger=False,
    )
    assert [type(callback) for callback in callbacks if callback not in trainer.callbacks] == []
    assert list(tmp_path.iterdir()) == []  # building writes nothing


def test_every_data_set_builds():
    for name in options("data"):
        config = composed("train", f"data={name}", *NEEDED.get(name, [])).data
        assert build(config).image_shape == (config.image_channels, config.image_size, config.image_size)


def test_trainers_differ_in_the_accelerator_alone():
    trainers = {
        name: OmegaConf.to_container(composed("train", f"trainer={name}").trainer) for name in options("trainer")
    }
    assert {name: trainer.pop("accelerator") for name, trainer in trainers.items()} == {name: name for name in trainers}
    assert all(trainer == trainers["auto"] for trainer in trainers.values())


@pytest.mark.parametrize(("group", "root"), [("data", "evaluate"), ("schedule", "denoise")])
def test_options_compose_in_other_roots(group, root):
    for name in options(group):
        assert "_target_" in composed(root, f"{group}={name}", *NEEDED.get(name, []))[group]


def test_every_mode_of_sampling_builds():
    for name in options("mode"):
        config = composed("sample", f"mode={name}")
        assert callable(build(config.mode))
        assert config.paths.data  # the images come from a data set


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


def test_every_target_exists():
    documents = [OmegaConf.load(path) for path in CONF.rglob("*.yaml")]
    found = [leaves(OmegaConf.to_container(document), into_lists=True) for document in documents]
    targets = {value for values in found for key, value in values if key.rpartition(".")[2] == "_target_"}
    assert targets > trusted_targets([CONF])
    assert len(targets) > 40
    assert [target for target in targets if not callable(get_object(target))] == []


@pytest.fixture(scope="module")
def images():
    """x_0 and ε for each of the 1000 timesteps."""
    draws = torch.Generator().manual_seed(0)
    return torch.rand(1000, 1, 2, 2, generator=draws) * 2 - 1, torch.randn(1000, 1, 2, 2, generator=draws)


@pytest.mark.parametrize("schedule", options("schedule"))
def test_schedules_objectives_predictions_and_variances_work_together(images, schedule):
    x0, eps = images
    t = torch.arange(1000)
    with_a_formula = [name for name in options("objective") if name != "guidance_distillation"]
    choices = product(with_a_formula, ["epsilon", "x0", "v", "mean"], ["small", "large"])
    for objective, prediction, variance in choices:
        config = composed("train", f"schedule={schedule}", f"objective={objective}").copy()
        config.objective.prediction, config.diffusion.variance = prediction, variance
        loss, diffusion = build(config.objective.loss), build(config.diffusion)
        assert (diffusion.prediction, diffusion.variance, diffusion.num_steps) == (prediction, variance, 1000)
        target = diffusion.target(x0, diffusion.q_sample(x0, t, eps), t, eps)
        losses = loss(network_that_returns(target + 0.1), diffusion, x0, t, eps)
        assert losses.shape == (1000,)
        assert losses.isfinite().all()
        assert (losses > 0).all()
        assert loss(network_that_returns(target), diffusion, x0, t, eps).max() < 1e-3 * losses.max()


def test_every_draw_of_timesteps_reaches_every_timestep():
    for name in options("objective/timesteps"):
        draw = build(composed("train", f"objective/timesteps={name}").objective.timesteps)
        t = draw(4000, 40, torch.Generator().manual_seed(0))
        assert t.dtype == torch.int64
        assert t.unique().tolist() == list(range(40)), name


ZERO_SNR = ["schedule=cosine", "schedule.max_beta=1.0"]


def test_epsilon_prediction_refuses_zero_terminal_snr():
    with pytest.raises(UserError, match=r"ε-prediction cannot represent a zero terminal .* Use prediction v or x0"):
        build(composed("train", *ZERO_SNR).diffusion)


@pytest.mark.parametrize("prediction", ["v", "x0"])
def test_v_and_x0_prediction_take_zero_terminal_snr(prediction):
    diffusion = build(composed("train", *ZERO_SNR, f"objective.prediction={prediction}").diffusion)
    assert diffusion.alpha_bars[-1] == 0
    network = trained_a_little(small_unet())
    model = DDPM(network, diffusion, IMAGE_SHAPE)
    samples = model.sample(2, build(composed("sample", "sampler=ddim", "sampler.steps=10").sampler), seed=0)
    assert samples.isfinite().all()


def test_the_linear_schedule_refuses_too_few_steps():
    with pytest.raises(UserError, match="rescale=False"):
        build(composed("train", "schedule.num_steps=20").diffusion)


@pytest.mark.parametrize("name", options("sampler"))
def test_every_sampler_takes_every_spacing(name):
    """10 of 1000 steps with an untrained network."""
    diffusion = GaussianDiffusion(build(composed("train").schedule))
    model = DDPM(trained_a_little(small_unet()), diffusion, IMAGE_SHAPE)
    config = composed("sample", f"sampler={name}").sampler.copy()
    for spacing in SPACINGS:
        config.steps, config.spacing = 10, spacing
        sampler = build(config)
        timesteps = sampler.timesteps(diffusion)
        assert len(timesteps) == 10, spacing
        assert timesteps[-1] == 999, spacing
        samples = model.sample(2, sampler, seed=0)
        assert samples.isfinite().all(), spacing
        assert samples.abs().max() <= 1, spacing
        assert samples.std() > 0.1, spacing
