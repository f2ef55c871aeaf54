"""The settings of each command, with their types and ranges. `ddpm.config.checking` compares a config with them.

A setting that is a node (a dict with a `_target_`) is checked against the signature of its target.
Settings of one's own need no line here if an interpolation reads them, as in `model.channels=${width}`.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field

from ddpm.config.checking import TYPES


def _has_target(value: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(value.get("_target_"), str):
        raise ValueError("a node with a `_target_`")
    return value


Node = Annotated[dict[str, Any], AfterValidator(_has_target)]
Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
MAX_SAMPLES = 1_000_000
Seed = Annotated[int, Field(ge=0)]
Batches = Count | Annotated[float, Field(gt=0, le=1)]
"""a number of batches, or a share of them"""
BatchesOrNone = CountOrZero | Annotated[float, Field(ge=0, le=1)]
Variance = Literal["small", "large", "optimal"]
Precision = Literal[
    "auto", "32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true", "32", "16", "bf16", "64", 32, 16, 64
]


Unit = Literal["weeks", "days", "hours", "minutes", "seconds"]
Duration = Annotated[str, Field(pattern=r"^\d\d:\d\d:\d\d:\d\d$")] | dict[Unit, Annotated[float, Field(ge=0)]]


class Settings(BaseModel, **TYPES, extra="forbid"):
    """Base class."""


class Outputs(Settings):
    outputs: str


class Paths(Outputs):
    data: str


class Devices(Settings):
    """Of every command that computes."""

    accelerator: str
    devices: int | str | list[int]
    num_nodes: Count
    precision: Precision


class Trainer(Devices, extra="allow"):
    """Arguments of Lightning's Trainer with ranges that it does not check itself. Its other arguments are allowed."""

    max_steps: Annotated[int, Field(ge=-1)]
    max_epochs: Annotated[int, Field(ge=-1)] | None
    accumulate_grad_batches: Count
    log_every_n_steps: Count
    gradient_clip_val: Annotated[float, Field(gt=0)] | None
    num_sanity_val_steps: Annotated[int, Field(ge=-1)]
    limit_train_batches: Batches | None = None
    overfit_batches: BatchesOrNone = 0
    limit_val_batches: BatchesOrNone | None
    val_check_interval: Batches | str | dict[str, float] | None
    check_val_every_n_epoch: Count | None
    gradient_clip_algorithm: Literal["norm", "value"] | None = None
    max_time: Duration | None = None


class Optimizer(Settings):
    lr: Annotated[float, Field(gt=0)]
    warmup_steps: CountOrZero
    decay_steps: Count | None
    algorithm: Node


class Objective(Settings):
    prediction: Literal["epsilon", "x0", "v", "mean"]
    loss: Node
    timesteps: Node


class EMA(Settings):
    decay: Annotated[float, Field(ge=0, lt=1)]


class Checkpoint(Settings):
    every_steps: Count
    every_minutes: Annotated[float, Field(gt=0)]


class RunPaths(Paths):
    run: Literal["set by the command"]


class Train(Settings):
    data: Node
    augmentation: Node | None
    schedule: Node
    model: Node
    objective: Objective
    sampler: Node
    optimizer: Optimizer
    trainer: Trainer
    paths: RunPaths
    callbacks: dict[str, Node | None] | None
    logger: dict[str, Node | None] | None
    module: Node
    diffusion: Node
    ema: EMA
    checkpoint: Checkpoint
    seed: Seed
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=119)] | None
    restart: bool
    dry_run: bool
    init_from: str | None
    init_from_partial: bool
    channels_last: bool
    compile: bool
    not_identity: list[str]


class Average(Settings):
    length: float | None


class FromCheckpoint(Settings):
    """Of commands that load a checkpoint."""

    sampler: Node
    guidance: Node
    trainer: Devices
    num_samples: Annotated[int, Field(ge=0, le=MAX_SAMPLES)]
    variance: Variance | None
    ema: Average
    seed: Seed
    batch_size: Count
    not_identity: list[str]


class SamplePaths(Outputs):
    data: str | None = None
    """used by a mode, which starts from images"""


class Sample(FromCheckpoint):
    ckpt: str
    paths: SamplePaths
    num_samples: Annotated[int, Field(ge=1, le=MAX_SAMPLES)]
    labels: Literal["all"] | int | list[int] | None
    mode: Node | None
    images: list[CountOrZero] = []
    data: Node | None = None


class Share(Settings):
    exact: bool
    train_images: CountOrZero
    empirical_images: CountOrZero
    x0_mse_draws: CountOrZero


class Evaluate(FromCheckpoint):
    ckpt: str | None
    samples: str | None
    paths: Paths
    data: Node | None
    num_images: CountOrZero | None
    timesteps_per_image: Count
    features: Node | None
    measures: dict[str, Node | None] | None
    evaluate: Share


class Denoise(Settings):
    ckpt: str | None
    data: Node
    schedule: Node
    trainer: Devices
    paths: Paths
    image_index: CountOrZero
    seed: Seed
    not_identity: list[str]


class Report(Settings):
    runs: str | list[str]
    paths: Outputs


class Export(Settings):
    ckpt: str
    to: str
    dtype: Literal["float16", "bfloat16"] | None
    ema: Average
    license: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.+-]*$", max_length=50)] | None
    paths: Outputs


SETTINGS: dict[str, type[Settings]] = {
    "train": Train,
    "sample": Sample,
    "evaluate": Evaluate,
    "denoise": Denoise,
    "report": Report,
    "export": Export,
}
"""for each command; the keys of a command that is not here are not checked"""
