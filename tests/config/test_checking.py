"""Values of a wrong type, out of range, or that nothing reads: each is refused with its key and what is valid."""

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser

from ddpm.commands.settings import SETTINGS
from ddpm.config import conf_dir
from ddpm.config.checking import check_config, signature
from ddpm.errors import UserError
from ddpm.launch.overrides import check_choices
from ddpm.models import UNet


def check(command, *overrides):
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        check_config(compose(command, list(overrides)), SETTINGS[command])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("restart=no", "restart=no must be true or false"),
        ("seed=1e3", "seed=1000.0 must be a whole number"),
        ("seed=null", "seed=null must be a whole number"),
        ("seed=-1", "seed=-1 must be"),
        ("trainer.max_steps=true", "trainer.max_steps=true must be a whole number"),
        ("trainer.max_steps=1.5", "trainer.max_steps=1.5 must be a whole number"),
        ("trainer.val_check_interval=0", "trainer.val_check_interval=0 must be at least 1 or above 0"),
        ("trainer.num_nodes=0", "trainer.num_nodes=0 must be at least 1"),
        ("optimizer.warmup_steps=-1", "optimizer.warmup_steps=-1 must be at least 0"),
        ("checkpoint.every_steps=0", "checkpoint.every_steps=0 must be at least 1"),
        ("data.batch_size=2.5", "data.batch_size=2.5 must be a whole number"),
        ("trainer.log_every_n_steps=0", "trainer.log_every_n_steps=0 must be at least 1"),
        ("trainer.gradient_clip_val=-1", "trainer.gradient_clip_val=-1 must be above 0"),
        ("+trainer.max_time={hours:-1}", "trainer.max_time.hours=-1 must be at least 0"),
        ("+trainer.max_time=12", "trainer.max_time=12 must be text or a group of settings"),
        ("ema.decay=nan", "ema.decay=NaN must be a finite number"),
        ("model.channels=99999999999999999999", "does not fit into 64 bits"),
        ("objective.prediction=eps", "objective.prediction=eps must be 'epsilon', 'x0', 'v' or 'mean'"),
        ("model.multipliers=[1,a]", "model.multipliers[1]=a must be a whole number"),
        ("optimizer.algorithm.betas=[0.9]", "must be a longer list"),
        ("objective.loss=5", "objective.loss=5 must be a group of settings"),
        ("objective.loss._target_=null", "must be a node with a `_target_`"),
        ("callbacks.pictures.sampler=5", "must be a node with a `_target_`"),
        ("diffusion.betas={_target_:ddpm.models.UNet}", "diffusion.betas must be a Tensor; ddpm.models.UNet gives"),
        ("model._target_=no.such.Thing", "model._target_=no.such.Thing cannot be imported: No module named 'no'"),
        ("+model.chanels=3", "model.chanels is no argument of ddpm.models.UNet. Did you mean model.channels"),
        ("+seeds=3", "seeds is read by nothing. Did you mean seed?"),
        ("+nothing.reads.this=1", "nothing.reads.this is read by nothing."),
        ("+optimizer.warmup=5", "optimizer.warmup is read by nothing. Did you mean optimizer.warmup_steps"),
        ("paths.run=elsewhere", "paths.run=elsewhere must be 'set by the command'"),
        ("~model", "model is missing. Choose model=diffusers|unet_base|unet_patches|unet_small|unet_tiny."),
        ("init_from='a\\x00'", None),
        (r"init_from='é'", None),
    ],
)  # fmt: skip
def test_training(override, message):
    if message is None:
        check("train", override)
        return
    with pytest.raises(UserError) as refusal:
        check("train", override)
    assert message in str(refusal.value)
    assert str(refusal.value).count("\n") <= 1


def test_a_key_that_an_interpolation_reads_is_accepted():
    check("train", "+width=16", "model.channels=${width}")
    check("train", "+own.width=16", "+own.depth=2", "model.channels=${own.width}", "model.blocks=${own.depth}")
    with pytest.raises(UserError, match=r"own\.other is read by nothing"):
        check("train", "+own.width=16", "+own.other=2", "model.channels=${own.width}")


@pytest.mark.parametrize(
    ("command", "override", "message"),
    [
        ("sample", "ckpt=null", "ckpt=null must be text"),
        ("sample", "num_samples=0", "num_samples=0 must be at least 1"),
        ("evaluate", "evaluate.exact=1", "evaluate.exact=1 must be true or false"),
        ("evaluate", "measures.kid=5", "measures.kid=5 must be a group of settings"),
        ("denoise", "image_index=-1", "image_index=-1 must be at least 0"),
        ("report", "runs=[1]", "runs[0]=1 must be text"),
    ],
)
def test_other_commands(command, override, message):
    overrides = {"sample": ["ckpt=x"], "report": ["runs=x"]}.get(command, [])
    check(command, *overrides)
    with pytest.raises(UserError) as refusal:
        check(command, *overrides, override)
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    "override",
    ["model=null", "data=1,mnist", "hydra/sweeper=5", "+sweep={a:1}", "logger=[csv,2]", "augmentation=[flip,shift]"],
)
def test_a_choice_that_is_no_name(override):
    with pytest.raises(UserError, match="choose"):
        check_choices([OverridesParser.create().parse_override(override)], [conf_dir()])
    fine = [
        "model=unet_tiny,unet_small",
        "logger=[csv,wandb]",
        "callbacks=[default,ema_snapshots]",
        "seed=null",
        "~callbacks",
    ]
    check_choices(OverridesParser.create().parse_overrides(fine), [conf_dir()])


def test_signatures():
    class Base:
        def __init__(self, size: int = 1): ...

    class Child(Base):
        def __init__(self, name: "str", unknown: "Missing", **kwargs): ...  # type: ignore[name-defined]

    types, takes_others = signature(Child)
    assert (types["name"], types["size"], takes_others) == (str, int, True)
    assert signature(UNet)[0].keys() >= {"image_channels", "channels", "multipliers", "blocks", "attention", "dropout"}
    assert not signature(UNet)[1]
