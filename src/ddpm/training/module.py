"""`DDPM`, the LightningModule: training and validation. Sampling is in its base class, `SamplingModel`."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric, Metric, MetricCollection

from ddpm.data import ImageData
from ddpm.data.batches import batches_done
from ddpm.devices import shard, to_device
from ddpm.diffusion import GaussianDiffusion, Objective, Simple, vlb_terms
from ddpm.diffusion.objective import uniform
from ddpm.errors import UserError
from ddpm.models.contract import check_network, num_classes_of
from ddpm.runs.checkpoints import FORMAT
from ddpm.secrets import mask_values
from ddpm.seeding import ImageNoise, Stream, evenly_spread, generator, seed_at
from ddpm.training.averaging import moving_average
from ddpm.training.learning_rate import warmup_and_decay
from ddpm.training.lightning_internals import logged_step
from ddpm.training.muon import whole_tensor
from ddpm.training.sampling import SamplingModel

LABEL_DROPOUT = 0.1
"""the default share of labels that training leaves out"""

DrawTimesteps = Callable[[int, int, torch.Generator], Tensor]
"""draw(batch_size, num_steps, generator) -> timesteps, int64 [B] on the CPU"""

NEVER = 2**62
"""an optimizer step that no run reaches"""


class DDPM(SamplingModel):
    """A denoising diffusion model: trains `network` and keeps an exponential moving average of its weights in `ema`.

    Validation and sampling use the averaged weights. The timesteps, the noise and the left-out labels of a training
    step depend only on the seed and the number of batches done, so a resumed run is bitwise identical to an
    uninterrupted run. Each rank draws them for the global batch, and takes its slice.

    The model is class-conditional if the network has an attribute `num_classes` (see `ddpm.models.contract`).

    To train a subclass, set `module._target_` in the config; the other keys of `module` are arguments of its
    constructor.

    Args:
        network: network(x_t [B, C, H, W], t [B], **condition) -> output [B, C, H, W].
        diffusion: the diffusion process, with the type of the network's prediction.
        image_shape: (C, H, W).
        objective: calls the network and computes the loss of each image.
        draw_timesteps: draws the timesteps of the global batch.
        optimizer: builds the optimizer from the parameters to train.
        warmup_steps: the learning rate rises linearly over these steps, then stays constant.
        decay_steps: if given, the learning rate falls to zero along a half cosine from the end of the warm-up to
            this step.
        ema_decay: decay of the moving average per optimizer step; the decay is smaller in the first steps.
        label_dropout: probability that a training image has no label; None means 0.1. Samples without labels and
            classifier-free guidance need it.
        seed: seed of the timesteps, noise, label dropout and dropout in training. The data has its own seed.
        config: the resolved config as plain data. Each checkpoint contains it, and `load_model` rebuilds the model from
            it.

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
        label_dropout: float | None = None,
        seed: int = 0,
        config: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        self.save_hyperparameters({"config": mask_values(config)}, logger=False)
        self.network = network
        self.diffusion = diffusion
        self.image_shape = image_shape
        self.objective = objective or Simple()
        self.draw_timesteps = draw_timesteps
        self.optimizer = optimizer
        self.learning_rate_factor = warmup_and_decay(warmup_steps, decay_steps)
        self.num_classes = num_classes_of(network)
        if label_dropout is not None and self.num_classes is None:
            raise ValueError("label_dropout needs a class-conditional network: set model.num_classes.")
        self.label_dropout = LABEL_DROPOUT if label_dropout is None else label_dropout
        if not 0 <= self.label_dropout < 1:
            raise ValueError(f"label_dropout={label_dropout} must be at least 0 and below 1.")
        self.seed = seed
        self.ema = moving_average(network, ema_decay)
        self.gradient_norm = torch.zeros(())
        self.first_bad_step = torch.tensor(NEVER)  # the first whose gradient was not finite
        self.newest: dict[str, float] = {}  # the newest value of each metric from `log_now`
        names = ("loss", "bpd", "loss_q1", "loss_q2", "loss_q3", "loss_q4")
        # "disable" keeps NaN in the mean, so that `on_validation_epoch_end` finds it.
        means: dict[str, Metric | MetricCollection] = {name: MeanMetric(nan_strategy="disable") for name in names}
        self.validation_metrics = MetricCollection(means, compute_groups=False)
        check_network(self.ema, image_shape, self.num_classes is not None)

    @classmethod
    def load_from_checkpoint(cls, *args: Any, **kwargs: Any) -> Self:
        """Load a model that was made in Python, with its parts as keyword arguments. `ddpm.load` loads a run's model.

        Raises:
            UserError: arguments of the constructor are missing.
        """
        try:
            return super().load_from_checkpoint(*args, **kwargs)
        except TypeError as error:
            raise UserError(
                f"{error}. Use ddpm.load(path): it builds the model of a run from its checkpoint."
            ) from error

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.check_gradients()
        checkpoint["format"] = FORMAT
        checkpoint["newest"] = self.newest
        self.check_finite(checkpoint["state_dict"])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.newest = checkpoint.get("newest", {})
        self.check_finite(checkpoint.get("state_dict", {}))  # FSDP restores the weights itself

    def check_finite(self, state: Mapping[str, Tensor]) -> None:
        """Raise a UserError if a parameter in the state dict has a NaN or infinite value. Buffers may be infinite."""
        for name, _ in self.named_parameters():
            if name in state and not state[name].isfinite().all():
                raise UserError(f"the weight {name} is not finite: it contains NaN or infinity.")

    def condition(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Return the network's keyword arguments for a batch besides x_t and t: the labels, if it is class-conditional.

        Override this for another condition.
        """
        return {} if self.num_classes is None else {"labels": batch[1]}

    def setup(self, stage: str) -> None:
        if isinstance(data := getattr(self.trainer, "datamodule", None), ImageData):
            self.check_classes(data)
        if stage == "fit" and isinstance(self.objective, Objective):  # any function works too
            self.objective.check(self)

    def check_classes(self, data: ImageData) -> None:
        """Raise a UserError if the labels of the data have classes that a class-conditional network lacks."""
        if self.num_classes is not None and data.num_classes > self.num_classes:
            raise UserError(f"the data has {data.num_classes} classes, but the model has {self.num_classes}.")

    # Training ---------------------------------------------------------------------------------------------------

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        t, eps, condition = self.draw(batch)
        losses = self.objective(self.network, self.diffusion, batch[0], t, eps, **condition)
        loss = losses.mean()
        self.batch_loss = loss.detach()
        self._log_losses(t, losses.detach())
        # 0 · inf = NaN: if the loss of one process is not finite, the gradient (the average over all processes) is NaN,
        # and `check_gradients` finds it.
        return loss * (1 + 0 * self.batch_loss)

    def draw(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return the timesteps [B] and the noise [B, C, H, W] of a training batch, and its condition, on its device.

        The random numbers depend only on the seed and the batches done. Each process draws them for the global batch
        and takes its part, so they do not depend on the number of processes. Dropout is the exception: this
        function seeds torch's default generator for it, differently in each process.
        """
        x0, _ = batch
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        batches = batches_done(self.trainer)
        torch.manual_seed(seed_at(Stream.NETWORK, self.seed, batches, rank))

        draws = generator(Stream.DIFFUSION, self.seed, batches)
        size = len(x0) * world_size
        mine = slice(rank * len(x0), (rank + 1) * len(x0))
        t = self.draw_timesteps(size, self.diffusion.num_steps, draws)[mine]
        eps = torch.randn(size, *self.image_shape, generator=draws)[mine]

        condition = self.condition(batch)
        if self.num_classes is not None:
            left_out = torch.rand(size, generator=generator(Stream.LABELS, self.seed, batches)) < self.label_dropout
            condition["labels"] = condition["labels"].masked_fill(
                to_device(left_out[mine], x0.device), self.num_classes
            )
        return to_device(t, x0.device), to_device(eps, x0.device), condition

    def _log_losses(self, t: Tensor, losses: Tensor) -> None:
        if self.may_read_device:
            # On the CPU: otherwise the progress bar would make each batch wait for the device.
            self.log("train/loss", self.batch_loss.cpu(), prog_bar=True, logger=False)
        if self.logs_this_step:
            t, losses = (part.flatten() for part in self.all_gather((t, losses)))  # now of the global batch
            self.log_now({"train/loss": losses.mean()})
            self.log_now({f"train/{name}": part.mean() for name, part in self._by_quarter(t, losses) if len(part)})

    @property
    def logs_this_step(self) -> bool:
        """Whether metrics are logged in the current training step."""
        trainer = self.trainer
        batches = trainer.fit_loop.epoch_loop.batch_progress.total.ready
        return batches % (trainer.log_every_n_steps * trainer.accumulate_grad_batches) == 0  # type: ignore[attr-defined]

    @property
    def may_read_device(self) -> bool:
        """Whether a number may be read from the device in this step.

        A CPU may read in each step. With a GPU, the CPU has to wait, and the GPU is idle until the next step is queued;
        so only logged steps read. (In 16-mixed, `_scaler_skipped_step` has to read in each step.)
        """
        return self.logs_this_step or self.device.type == "cpu"

    def log_now(self, values: Mapping[str, Tensor | float]) -> None:
        """Log training metrics immediately: Lightning's `log` would write them only after the step's checkpoint."""
        numbers = {name: float(torch.as_tensor(value).detach()) for name, value in values.items()}
        self.newest |= numbers
        for logger in self.trainer.loggers:
            logger.log_metrics(numbers, logged_step(self.trainer))

    def _by_quarter(self, t: Tensor, losses: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield the name and the losses of each quarter of the timesteps; loss_q1 has the least noise."""
        quarters = 4 * t // self.diffusion.num_steps
        for quarter in range(4):
            yield f"loss_q{quarter + 1}", losses[quarters == quarter]

    def trained_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the network and of an objective that has some. The average is frozen."""
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
        norm = nn.utils.clip_grad_norm_(weights, math.inf if by_value else limit)  # before clipping
        self.gradient_norm = whole_tensor(norm)
        if by_value:
            nn.utils.clip_grad_value_(weights, limit)
        if self.logs_this_step:
            self.log_now({"train/grad_norm": self.gradient_norm})

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Make the optimizer step, note whether its gradient was finite, and update the moving average.

        Raises:
            UserError: see `check_gradients`.
        """
        super().optimizer_step(*args, **kwargs)
        if not self._scaler_skipped_step():
            this_step = torch.where(self.gradient_norm.isfinite(), NEVER, self.global_step)
            self.first_bad_step = torch.minimum(self.first_bad_step, this_step)
        if self.may_read_device:
            self.check_gradients()
        self.ema.update_parameters(self.network)

    def _scaler_skipped_step(self) -> bool:
        """Return whether the scaler skipped the step after a float16 overflow that a lower scale may avoid."""
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler is None or self.gradient_norm.isfinite():
            return False
        return scaler.get_scale() >= 1 and bool(self.batch_loss.isfinite())

    def check_gradients(self) -> None:
        """Check the gradients of all steps so far; this waits for the device.

        Each step notes on the device whether its gradient was finite. On the CPU the note is read after each step, on a
        GPU in steps that are logged, and before a validation, a checkpoint and the end.

        Raises:
            UserError: a loss or a gradient was not finite. No checkpoint of the weights after that step is written.
        """
        if (step := int(self.first_bad_step)) < NEVER:
            raise UserError(
                f"the loss or its gradient is not finite at step {step} (gradient norm {float(self.gradient_norm)} at "
                f"step {self.global_step}). Lower optimizer.lr or trainer.gradient_clip_val, or use another "
                "trainer.precision. The last checkpoint, if there is one, has finite weights."
            )

    def on_train_start(self) -> None:
        self.first_bad_step = torch.tensor(NEVER, device=self.device)

    def on_train_end(self) -> None:
        self.check_gradients()

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

    def on_validation_start(self) -> None:
        self.check_gradients()

    def on_validation_epoch_start(self) -> None:
        self._images_validated = 0
        self.validation_metrics.reset()  # `Trainer.validate` leaves inference tensors, which `fit` could not change

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Compute the loss and the bound of each image, at timesteps and noise that depend only on the image's index.

        The computation is in float32, because the rounding of bfloat16 increases the bound.
        """
        x0, _ = batch
        condition = self.condition(batch)
        # Each rank has every world_size-th image.
        local = torch.arange(self._images_validated, self._images_validated + len(x0))
        index = local * self.trainer.world_size + self.trainer.global_rank
        self._images_validated += len(x0)
        fraction = evenly_spread(index)
        t = (fraction * self.diffusion.num_steps).long().to(x0.device)
        after_first = 1 + (fraction * (self.diffusion.num_steps - 1)).long()[:, None]
        if self.diffusion.num_steps == 1:
            after_first = after_first[:, :0]  # there is only the reconstruction
        randn_like = ImageNoise(Stream.VALIDATION, indices=index.tolist())

        with torch.autocast(x0.device.type, enabled=False):
            losses = self.objective(self.ema, self.diffusion, x0, t, randn_like(x0), **condition)
            network = partial(self.ema, **condition)
            bound = vlb_terms(network, self.diffusion, x0, after_first, randn_like)

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
                    "Lower optimizer.lr, or start a new run from an earlier checkpoint (init_from=CKPT)."
                )
        for name, metric in self.validation_metrics.items():
            self.log(f"val/{name}", metric, prog_bar=name in ("loss", "bpd"))
