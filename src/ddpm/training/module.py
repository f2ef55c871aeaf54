"""DDPM, the LightningModule: a network, the diffusion that it reverses, and how it is trained."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Self

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric, Metric, MetricCollection

from ddpm.data.batches import batches_done
from ddpm.devices import shard
from ddpm.diffusion import Ancestral, GaussianDiffusion, Objective, Sampler, SDEDPMSolverPP, Simple, vlb_terms
from ddpm.diffusion.objective import uniform
from ddpm.errors import UserError
from ddpm.runs.checkpoints import FORMAT
from ddpm.seeding import ImageNoise, Stream, evenly_spread, generator, seed_at
from ddpm.training.averaging import moving_average
from ddpm.training.learning_rate import warmup_and_decay
from ddpm.training.lightning_internals import logged_step

DrawTimesteps = Callable[[int, int, torch.Generator], Tensor]
"""draw(batch_size, num_steps, generator) -> int64 [B] on the CPU"""


class DDPM(L.LightningModule):
    """A denoising diffusion model: trains `network` and keeps the exponential moving average of its weights, `ema`.

    Validation and sampling use the average. Timesteps and noise of training are functions of the seed and the number
    of batches done. They are drawn for the global batch and sliced by rank, so a resumed run ends in the same bits.

    A subclass is named by `module._target_` in the config; further keys of `module` go to its constructor.

    Args:
        network: network(x_t [B, C, H, W], t [B], **condition) -> output [B, C, H, W].
        diffusion: the process, and what the network predicts.
        image_shape: (C, H, W).
        objective: computes the losses; it calls the network.
        draw_timesteps: draws the timesteps of the global batch.
        optimizer: parameters -> optimizer.
        warmup_steps: the learning rate rises linearly over these steps, then stays constant.
        decay_steps: if given, the learning rate falls to zero along a half cosine from the end of the warm-up to
            this step.
        ema_decay: decay of the average per step; smaller in the first steps.
        seed: of the draws in training.
        config: the resolved config as plain data. Checkpoints carry it and are loaded by it.

    Raises:
        ValueError: the network does not fit `image_shape`, or a setting is out of its range.
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
        self.learning_rate_factor = warmup_and_decay(warmup_steps, decay_steps)
        self.seed = seed
        self.ema = moving_average(network, ema_decay)
        self.gradient_norm = torch.zeros(())
        self.newest: dict[str, float] = {}  # of what `log_now` has logged
        names = ("loss", "bpd", "loss_q1", "loss_q2", "loss_q3", "loss_q4")
        # Other strategies leave NaN out.
        means: dict[str, Metric | MetricCollection] = {name: MeanMetric(nan_strategy="disable") for name in names}
        self.validation_metrics = MetricCollection(means, compute_groups=False)
        self._check_network()

    def _check_network(self) -> None:
        """Call the network once, so that an image size that it cannot take shows before training."""
        image = torch.zeros(1, *self.image_shape)
        with torch.no_grad():
            output = self.ema(image, torch.zeros(1, dtype=torch.int64))
        if output.shape != image.shape:
            raise ValueError(
                f"the network turns images of shape {list(image.shape)} into {list(output.shape)}: both must be equal."
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["format"] = FORMAT
        checkpoint["newest"] = self.newest
        self.check_finite(checkpoint["state_dict"])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.newest = checkpoint.get("newest", {})
        self.check_finite(checkpoint["state_dict"])

    def check_finite(self, state: Mapping[str, Tensor]) -> None:
        """Raise a UserError if a weight in the state of this module is NaN or infinite. Buffers may be infinite."""
        for name, _ in self.named_parameters():
            if name in state and not state[name].isfinite().all():
                raise UserError(f"the weight {name} is not finite: it holds NaN or infinity.")

    def condition(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """What the network takes besides x_t and t for the images of a batch. Override it for a conditional network."""
        return {}

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

        losses = self.objective(self.network, self.diffusion, x0, t, eps, **self.condition(batch))
        loss = losses.mean()
        self.batch_loss = loss.detach()
        self.log("train/loss", loss, prog_bar=True, logger=False)
        if self.logs_this_step:
            t, losses = (part.flatten() for part in self.all_gather((t, losses.detach())))  # of the global batch
            self.log_now({"train/loss": losses.mean()})
            self.log_now({f"train/{name}": part.mean() for name, part in self._by_quarter(t, losses) if len(part)})
        # A loss that is not finite makes the gradient NaN, in all processes. `optimizer_step` finds it there.
        return loss * (1 + 0 * self.batch_loss)

    @property
    def logs_this_step(self) -> bool:
        """Whether the current training step is one whose numbers are logged."""
        trainer = self.trainer
        batches = trainer.fit_loop.epoch_loop.batch_progress.total.ready
        return batches % (trainer.log_every_n_steps * trainer.accumulate_grad_batches) == 0  # type: ignore[attr-defined]

    def log_now(self, values: Mapping[str, Tensor | float]) -> None:
        """Log numbers of the training at once. Lightning's `log` would log them after the step's checkpoint."""
        numbers = {name: float(torch.as_tensor(value).detach()) for name, value in values.items()}
        self.newest |= numbers
        for logger in self.trainer.loggers:
            logger.log_metrics(numbers, logged_step(self.trainer))

    def _by_quarter(self, t: Tensor, losses: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The losses in each quarter of the timesteps, q1 nearest to the image."""
        quarters = 4 * t // self.diffusion.num_steps
        for quarter in range(4):
            yield f"loss_q{quarter + 1}", losses[quarters == quarter]

    def trained_parameters(self) -> list[nn.Parameter]:
        """The weights of the network, and of an objective that has some; those of the average are frozen."""
        return [weight for weight in self.parameters() if weight.requires_grad]

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        weights = self.trained_parameters()
        limit = gradient_clip_val if gradient_clip_val and gradient_clip_val > 0 else math.inf
        by_value = gradient_clip_algorithm == "value"
        self.gradient_norm = nn.utils.clip_grad_norm_(weights, math.inf if by_value else limit)  # before clipping
        if by_value:
            nn.utils.clip_grad_value_(weights, limit)
        if self.logs_this_step:
            self.log_now({"train/grad_norm": self.gradient_norm})

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Make the step, check it, and update the average.

        Raises:
            UserError: the loss or its gradient is not finite. No checkpoint of the new weights is written.
        """
        super().optimizer_step(*args, **kwargs)
        # Here, where updating the average waits for the device anyway.
        if not self.gradient_norm.isfinite() and not self._scaler_skipped_step():
            raise UserError(
                f"the loss or its gradient is not finite after step {self.global_step - 1} (gradient norm "
                f"{float(self.gradient_norm)}). Lower optimizer.lr or trainer.gradient_clip_val, or use another "
                "trainer.precision. The last checkpoint has finite weights."
            )
        self.ema.update_parameters(self.network)

    def _scaler_skipped_step(self) -> bool:
        """Whether the gradient overflowed float16, so that the step was left out, and a smaller scale may help."""
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        return scaler is not None and scaler.get_scale() >= 1 and bool(self.batch_loss.isfinite())

    def configure_model(self) -> None:
        if self.device_mesh is not None:  # trainer.strategy=fsdp
            for network in (self.network, self.ema):
                shard(network, self.device_mesh["data_parallel"])

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.trained_parameters())
        scheduler = LambdaLR(optimizer, self.learning_rate_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.ema.eval()  # no dropout in the average
        return self

    # Validation -------------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        self._images_validated = 0

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Loss and bound at timesteps and noise that depend on the image's index alone.

        In float32, since the rounding of bfloat16 adds to the bound.
        """
        x0, _ = batch
        condition = self.condition(batch)
        # Each rank has every world_size-th image.
        local = torch.arange(self._images_validated, self._images_validated + len(x0))
        index = local * self.trainer.world_size + self.trainer.global_rank
        self._images_validated += len(x0)
        position = evenly_spread(index)
        t = (position * self.diffusion.num_steps).long().to(x0.device)
        after_first = 1 + (position * (self.diffusion.num_steps - 1)).long()
        randn_like = ImageNoise(Stream.VALIDATION, indices=index.tolist())

        with torch.autocast(x0.device.type, enabled=False):
            losses = self.objective(self.ema, self.diffusion, x0, t, randn_like(x0), **condition)
            network = partial(self.ema, **condition)
            bound = vlb_terms(network, self.diffusion, x0, after_first[:, None], randn_like)

        self.validation_metrics["loss"].update(losses)
        for name, quarter in self._by_quarter(t, losses):
            self.validation_metrics[name].update(quarter)
        self.validation_metrics["bpd"].update(bound.total(self.diffusion.num_steps))

    def on_validation_epoch_end(self) -> None:
        """Log the means over all images.

        Raises:
            UserError: the loss or the bound is not finite.
        """
        for name in ("loss", "bpd"):
            if not (value := self.validation_metrics[name].compute()).isfinite():
                raise UserError(
                    f"val/{name} is {value.item()}: the network's output is not finite at some timesteps. "
                    "Lower optimizer.lr, or continue from an earlier checkpoint with init_from."
                )
        for name, metric in self.validation_metrics.items():
            self.log(f"val/{name}", metric, prog_bar=name in ("loss", "bpd"))

    # Sampling ---------------------------------------------------------------------------------------------------

    def sample(
        self,
        num_samples: int,
        sampler: Sampler | None = None,
        steps: int | None = None,
        seed: int | None = None,
        batch_size: int = 256,
        on_step: Callable[[int], None] | None = None,
    ) -> Tensor:
        """Images drawn with the average, [N, C, H, W] in [-1, 1], on the model's device.

        Args:
            sampler: if None, SDE-DPM-Solver++ with `steps` network evaluations, or else the ancestral chain.
            steps: network evaluations; not together with `sampler`, which has its own.
            seed: image i is a function of (seed, i), up to rounding; drawn at random if None.
            batch_size: images drawn at once.
            on_step: called after each step with the number of images of the batch.
        """
        if sampler is None:
            sampler = Ancestral() if steps is None else SDEDPMSolverPP(steps, spacing="trailing")
        elif steps is not None:
            raise ValueError("give sampler or steps, not both: a sampler has its own number of steps.")
        seed = int(torch.randint(2**31, ())) if seed is None else seed
        batches = torch.arange(num_samples).split(batch_size)
        return torch.cat([self.sample_images(indices.tolist(), sampler, seed, on_step) for indices in batches])

    def check_sampler(self, sampler: Sampler) -> int:
        """The number of steps that `sampler` takes with this model's diffusion.

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
        """The images with these indices among those that `sample` draws with a seed, [len(indices), C, H, W]."""
        randn_like = ImageNoise(Stream.SAMPLING, seed, indices=indices)
        x_t = randn_like(torch.empty(len(indices), *self.image_shape, device=self.device))
        for step in sampler.iterate(self.ema, self.diffusion, x_t, randn_like):
            x_t = step.x_t
            if on_step:
                on_step(len(indices))
        return x_t.clamp(-1, 1)
