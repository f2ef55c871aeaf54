"""The LightningModule: a network, the diffusion that it reverses, and how it is trained."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel
from torchmetrics import MeanMetric, MetricCollection

from ddpm.config import build, conf_dir
from ddpm.data.batches import batches_done
from ddpm.devices import shard
from ddpm.diffusion import Ancestral, GaussianDiffusion, Objective, Sampler, Simple, vlb_terms
from ddpm.diffusion.objective import uniform
from ddpm.errors import UserError
from ddpm.metrics.bound import GOLDEN_RATIO
from ddpm.runs.checkpoints import check_targets, load_checkpoint, trusted_targets
from ddpm.seeding import ImageNoise, Stream, generator, seed_at

DrawTimesteps = Callable[[int, int, torch.Generator], Tensor]
"""draw(batch_size, num_steps, generator) -> int64 [B] on the CPU"""


class DDPM(L.LightningModule):
    """A denoising diffusion model: trains `network`, and keeps its exponential moving average as `ema`.

    Validation and sampling use the average. The draws of training are functions of the seed and the number of
    batches before, made for the global batch and sliced by rank: a run that is resumed ends in the same bits.

    Args:
        network: network(x_t [B, C, H, W], t [B]) -> output [B, C, H, W].
        diffusion: the process, with what the network predicts.
        image_shape: (C, H, W).
        objective: computes the losses; calls the network.
        draw_timesteps: draws the timesteps of the global batch.
        optimizer: parameters -> optimizer.
        warmup_steps: the learning rate rises linearly over these steps, then stays.
        decay_steps: if given, it falls to zero along a half cosine from the end of the warm-up to this step.
        ema_decay: of the moving average; the first steps use less, (1 + n)/(10 + n) after n of them.
        seed: of the draws in training.
        config: the resolved config as plain data; checkpoints carry it and describe themselves by it.

    Raises:
        ValueError: the network does not fit `image_shape`, or a setting of the training is out of its range.
    """

    def __init__(
        self,
        network: nn.Module,
        diffusion: GaussianDiffusion,
        image_shape: tuple[int, int, int],
        objective: Objective | None = None,
        draw_timesteps: DrawTimesteps = uniform,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] = AdamW,
        warmup_steps: int = 0,
        decay_steps: int | None = None,
        ema_decay: float = 0.999,
        seed: int = 0,
        config: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        self.save_hyperparameters({"config": config}, logger=False)
        self.network = network
        self.diffusion = diffusion
        self.image_shape = image_shape
        self.objective = objective or Simple()
        self.draw_timesteps = draw_timesteps
        self.optimizer = optimizer
        if not 0 <= ema_decay < 1:
            raise ValueError(f"ema.decay={ema_decay} must be at least 0 and below 1.")
        if warmup_steps < 0:
            raise ValueError(f"optimizer.warmup_steps={warmup_steps} must be at least 0.")
        if decay_steps is not None and decay_steps <= warmup_steps:
            raise ValueError(
                f"optimizer.decay_steps={decay_steps} must be above optimizer.warmup_steps={warmup_steps}."
            )
        self.learning_rate_factor = partial(_learning_rate_factor, warmup=warmup_steps, decay=decay_steps)
        self.seed = seed
        self.ema = AveragedModel(network, multi_avg_fn=partial(_average, decay=ema_decay), use_buffers=False)
        self.ema.requires_grad_(False).eval()
        names = ("loss", "bpd", "loss_q1", "loss_q2", "loss_q3", "loss_q4")
        self.validation_metrics = MetricCollection({name: MeanMetric() for name in names}, compute_groups=False)
        self._check_network()

    def _check_network(self) -> None:
        """Ask the network once, before any training: a size that it cannot take shows here."""
        image = torch.zeros(1, *self.image_shape)
        with torch.no_grad():
            output = self.ema(image, torch.zeros(1, dtype=torch.int64))
        if output.shape != image.shape:
            raise ValueError(
                f"the network turns images of shape {list(image.shape)} into {list(output.shape)}: both must be equal."
            )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """The untrained model that a resolved `conf/train.yaml` describes; its weights follow from the seed.

        Raises:
            UserError: settings that do not go together.
        """
        torch.manual_seed(seed_at(Stream.INITIAL_WEIGHTS, config["seed"]))
        objective, optimizer = config["objective"], config["optimizer"]
        return cls._with_users_errors(
            **cls._parts(config),
            objective=build(objective["loss"]),
            draw_timesteps=build(objective["timesteps"]),
            optimizer=build(optimizer["algorithm"]),
            warmup_steps=optimizer["warmup_steps"],
            decay_steps=optimizer["decay_steps"],
            ema_decay=config["ema"]["decay"],
            seed=config["seed"],
        )

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: str | Path, map_location: Any = "cpu", trusted: set[str] | None = None
    ) -> Self:
        """The model of a checkpoint, ready to sample; needs nothing but the path.

        Of the config inside only the network and the diffusion are built, and only from targets that occur in a
        YAML of the config path (`trusted`; the project's own by default): a checkpoint runs no code of its own.

        Raises:
            UserError: the file is missing, damaged, no checkpoint of ours, or names a target that is not trusted.
        """
        checkpoint = load_checkpoint(Path(checkpoint_path))
        config = checkpoint["hyper_parameters"]["config"]
        try:
            for part in ("model", "diffusion"):
                check_targets(config[part], trusted or trusted_targets([conf_dir()]))
            model = cls._with_users_errors(**cls._parts(config))
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{checkpoint_path} describes no model that can be built: {error!r}") from error
        model._load_weights(checkpoint, checkpoint_path)
        return model.to(map_location).eval()

    def load_weights(self, path: Path) -> None:
        """Take the weights, and their average, of a checkpoint whose network is the same.

        Raises:
            UserError: the file is missing, damaged, no checkpoint of ours, or holds another network.
        """
        self._load_weights(load_checkpoint(path), path)

    def _load_weights(self, checkpoint: Mapping[str, Any], path: str | Path) -> None:
        try:
            self.load_state_dict(checkpoint["state_dict"])
        except (RuntimeError, TypeError, AttributeError) as error:
            raise UserError(f"the weights in {path} are of another network: {error}") from error

    @classmethod
    def _parts(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "network": build(config["model"]),
            "diffusion": build(config["diffusion"]),
            "image_shape": _image_shape(config["data"]["image_channels"], config["data"]["image_size"]),
            "config": config,
        }

    @classmethod
    def _with_users_errors(cls, **arguments: Any) -> Self:
        try:
            return cls(**arguments)
        except ValueError as error:
            raise UserError(str(error)) from error

    # Training ---------------------------------------------------------------------------------------------------

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x0, _ = batch
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        position = batches_done(self.trainer)
        torch.manual_seed(seed_at(Stream.NETWORK, self.seed, position, rank))

        draws = generator(Stream.DIFFUSION, self.seed, position)
        size = len(x0) * world_size
        mine = slice(rank * len(x0), (rank + 1) * len(x0))
        t = self.draw_timesteps(size, self.diffusion.num_steps, draws)[mine].to(x0.device)
        eps = torch.randn(size, *self.image_shape, generator=draws)[mine].to(x0.device)

        losses = self.objective(self.network, self.diffusion, x0, t, eps)
        loss = losses.mean()
        self.log("train/loss", loss, prog_bar=True, logger=False)
        if self.logs_this_step:
            t, losses = (part.flatten() for part in self.all_gather((t, losses.detach())))  # of the global batch
            self.log_now({"train/loss": losses.mean()})
            self.log_now({f"train/{name}": part.mean() for name, part in self._by_quarter(t, losses) if len(part)})
        return loss

    @property
    def logs_this_step(self) -> bool:
        """Whether the training's numbers are logged in the step that is being made."""
        trainer = self.trainer
        batches = trainer.fit_loop.epoch_loop.batch_progress.total.ready
        return batches % (trainer.log_every_n_steps * trainer.accumulate_grad_batches) == 0  # type: ignore[attr-defined]

    def log_now(self, values: Mapping[str, Tensor | float]) -> None:
        """Log numbers of the training at once; Lightning's `log` waits until after the step's checkpoint."""
        for logger in self.trainer.loggers:
            step = self.trainer.fit_loop.epoch_loop._batches_that_stepped
            logger.log_metrics({name: float(value) for name, value in values.items()}, step)

    def _by_quarter(self, t: Tensor, losses: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The losses of each quarter of the timesteps, the first near the image."""
        quarters = 4 * t // self.diffusion.num_steps
        for quarter in range(4):
            yield f"loss_q{quarter + 1}", losses[quarters == quarter]

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        if gradient_clip_algorithm not in (None, "norm"):
            raise UserError("gradients are clipped by their norm: leave trainer.gradient_clip_algorithm out.")
        norm = nn.utils.clip_grad_norm_(self.trained_parameters(), gradient_clip_val or math.inf)
        if self.logs_this_step:
            self.log_now({"train/grad_norm": norm})

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.ema.update_parameters(self.network)

    def configure_model(self) -> None:
        if self.device_mesh is not None:  # trainer.strategy=fsdp
            for network in (self.network, self.ema):
                shard(network, self.device_mesh["data_parallel"])

    def trained_parameters(self) -> list[nn.Parameter]:
        """The network's weights, and those of an objective that has some; the average is frozen."""
        return [weight for weight in self.parameters() if weight.requires_grad]

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.trained_parameters())
        scheduler = LambdaLR(optimizer, self.learning_rate_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.ema.eval()  # the average is never trained: no dropout in it
        return self

    # Validation -------------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        self._validated = 0

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Loss and bound at fixed timesteps and noise, functions of the image's index: equal weights, equal numbers.

        In float32, as the rounding of bfloat16 adds to the bound.
        """
        x0, _ = batch
        with torch.autocast(x0.device.type, enabled=False):
            self._validate(x0)

    def _validate(self, x0: Tensor) -> None:
        # The timesteps of successive images follow the golden ratio, which spreads any number of them evenly.
        # Ranks take every world_size-th image.
        local = torch.arange(self._validated, self._validated + len(x0))
        index = local * self.trainer.world_size + self.trainer.global_rank
        self._validated += len(x0)
        position = (index.double() * GOLDEN_RATIO) % 1
        randn_like = ImageNoise(Stream.VALIDATION, indices=index.tolist())

        t = (position * self.diffusion.num_steps).long().to(x0.device)
        losses = self.objective(self.ema, self.diffusion, x0, t, randn_like(x0))
        self.validation_metrics["loss"].update(losses)
        for name, quarter in self._by_quarter(t, losses):
            self.validation_metrics[name].update(quarter)

        after_first = 1 + (position * (self.diffusion.num_steps - 1)).long()
        bound = vlb_terms(self.ema, self.diffusion, x0, after_first[:, None], randn_like)
        self.validation_metrics["bpd"].update(bound.total(self.diffusion.num_steps))

    def on_validation_epoch_end(self) -> None:
        for name, metric in self.validation_metrics.items():
            self.log(f"val/{name}", metric, prog_bar=name in ("loss", "bpd"))

    # Sampling ---------------------------------------------------------------------------------------------------

    def sample(
        self,
        num_samples: int,
        sampler: Sampler | None = None,
        seed: int | None = None,
        batch_size: int = 256,
        on_step: Callable[[int], None] | None = None,
    ) -> Tensor:
        """Images from the moving average, [N, C, H, W] in [-1, 1], on the model's device.

        Args:
            sampler: the ancestral chain over all steps when None.
            seed: image i is a function of (seed, i), to rounding; a new one is drawn when None.
            batch_size: images made at once.
            on_step: called with the number of images that went one step further.
        """
        seed = int(torch.randint(2**31, ())) if seed is None else seed
        sampler = sampler or Ancestral()
        batches = torch.arange(num_samples).split(batch_size)
        return torch.cat([self.sample_images(indices.tolist(), sampler, seed, on_step) for indices in batches])

    def check_sampler(self, sampler: Sampler) -> int:
        """The number of steps that `sampler` takes over this model's chain.

        Raises:
            UserError: it cannot take them.
        """
        try:
            return len(sampler.timesteps(self.diffusion))
        except ValueError as error:
            raise UserError(f"sampler: {error}") from error

    def sample_images(
        self, indices: Sequence[int], sampler: Sampler, seed: int, on_step: Callable[[int], None] | None = None
    ) -> Tensor:
        """These of the images that `sample` makes with a seed, at once, [len(indices), C, H, W] in [-1, 1]."""
        noise = ImageNoise(Stream.SAMPLING, seed, indices=indices)
        x_t = noise(torch.empty(len(indices), *self.image_shape, device=self.device))
        for step in sampler.iterate(self.ema, self.diffusion, x_t, noise):
            x_t = step.x_t
            if on_step:
                on_step(len(indices))
        return x_t.clamp(-1, 1)


def _average(averaged: list[Tensor], current: list[Tensor], num_averaged: Tensor, decay: float) -> None:
    n = num_averaged.item()
    torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + n) / (10 + n)))


def _learning_rate_factor(step: int, warmup: int, decay: int | None) -> float:
    if step < warmup:
        return (step + 1) / warmup
    if decay is None:
        return 1.0
    progress = min((step - warmup) / max(decay - warmup, 1), 1.0)
    return (1 + math.cos(math.pi * progress)) / 2


def _image_shape(channels: int, size: int | list[int]) -> tuple[int, int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    return channels, height, width
