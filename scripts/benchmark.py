#!/usr/bin/env python
"""Measure the speed of this machine: training steps, sampling, input, start-up, folders of many pictures.

    scripts/benchmark step model=unet_small              # a training step against the convolutions and matmuls in it
    scripts/benchmark step --peers --device cuda         # beside other libraries
    scripts/benchmark sample --batch 256 --steps 20      # the network's forward pass, and whole sampling
    scripts/benchmark input                              # images/s into batches
    scripts/benchmark startup                            # seconds until the first training step, and of short commands
    scripts/benchmark scale --pictures 200000            # makes a folder of pictures and starts from it twice

Each command prints a table and writes outputs/benchmark/COMMAND.json. All cases are measured in turns, five times.
The table shows the median and, in brackets, the smallest and the largest value. Other arguments are overrides of
`ddpm train`, for example optimizer=muon compile=true. The roofline is the speed of the convolutions, matmuls and
attentions of the network alone, in the faster memory layout.
"""

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import lightning as L
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from ddpm.config import build, conf_dir
from ddpm.devices import device_name, lightning_arguments, reuse_freed_memory
from ddpm.errors import UserError
from ddpm.runs import Run
from ddpm.runs.status import installed_version, processor
from ddpm.training import DDPM, build_model
from ddpm.training.loggers import build_loggers
from ddpm.training.trainer import build_trainer, connect, ignore_expected_warnings, speed_up
from ddpm.training.trainer_options import check_trainer

ROOT = Path(__file__).resolve().parents[1]
MATMUL = {"cpu": 2048}  # side of the matrices in the large matmul; 8192 on other devices
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


# Measuring ------------------------------------------------------------------------------------------------------------


def timer() -> float:
    """Return the time in seconds, after all work on the GPU is done."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()


@dataclass
class Case:
    """A function to measure, and what one call of it does."""

    name: str
    call: Callable[[], object]
    images: float = 0
    flops: float = 0
    calls: int = 0
    """in one measurement"""
    seconds: list[float] = field(default_factory=list)
    """of one call, for each round"""

    def warm_up(self, seconds: float) -> float:
        """Call twice, set the number of calls that take about `seconds`, and return the time of the second call.

        A case that has its number of calls is left alone.
        """
        if self.calls:
            return 0.0
        self.call()
        start = timer()
        self.call()
        second = timer() - start
        self.calls = max(1, round(seconds / second))
        return second

    def measure(self) -> None:
        start = timer()
        for _ in range(self.calls):
            self.call()
        self.seconds.append((timer() - start) / self.calls)


def measure(cases: Sequence[Case], args: argparse.Namespace) -> None:
    for case in cases:
        case.warm_up(args.seconds)
    for _ in range(args.rounds):
        for case in cases:
            case.measure()


class Operations(TorchDispatchMode):
    """Records the convolutions, matrix products and attentions of what runs in this context, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in flop_registry:
            self.calls.append((func, *tree_map(lambda x: x.to("meta") if is_float(x) else x, (args, kwargs or {}))))
        return func(*args, **(kwargs or {}))

    def replay(self, name: str, layout: torch.memory_format, device: torch.device, images: int) -> Case:
        """Return the recorded operations alone, on random tensors of the same shapes and dtypes."""
        random: dict[Any, Tensor] = {}

        def tensor(role: str, x: Any) -> Any:
            if not is_float(x):
                return x
            key = (role, x.shape, x.stride(), x.dtype)  # calls share tensors, which bounds the memory
            if key not in random:
                made = torch.randn_like(x, device=device)
                random[key] = made.contiguous(memory_format=layout) if "convolution" in role and x.ndim == 4 else made
            return random[key]

        calls = [
            (func, [tree_map(partial(tensor, f"{func} {i}"), arg) for i, arg in enumerate(args)], kwargs)
            for func, args, kwargs in self.calls
        ]

        def replay() -> None:
            for func, args, kwargs in calls:
                func(*args, **kwargs)

        with FlopCounterMode(display=False) as counter:
            replay()
        return Case(name, replay, images, counter.get_total_flops())


def is_float(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def roofline(work: Callable[[], object], device: torch.device, images: int) -> list[Case]:
    """Return the convolutions and matmuls of `work` alone, in each memory layout, and one large matmul."""
    with Operations() as operations:
        work()
    cases = [operations.replay(f"its operations, {name}", LAYOUTS[name], device, images) for name in LAYOUTS]
    dtype = next(x.dtype for _, args, _ in operations.calls for x in args if is_float(x))
    size = MATMUL.get(device.type, 8192)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    peak = Case(f"matmul {size} × {size}, {str(dtype).removeprefix('torch.')}", lambda: a @ b, flops=2 * size**3)
    return [*cases, peak]


# What is measured -----------------------------------------------------------------------------------------------------


def composed(args: argparse.Namespace, *more: str) -> tuple[DictConfig, torch.device, Callable[[], Any]]:
    """Return the config of `ddpm train`, the device, and autocast in the precision of the config."""
    overrides = ["data=mnist_mini", f"data.batch_size={args.batch}", f"trainer.accelerator={args.device}"]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("train", [*overrides, *more, *args.overrides])
    check_trainer(cfg)
    reuse_freed_memory()  # as every command does
    keys = ("accelerator", "precision")
    chosen = lightning_arguments(**{key: cfg.trainer[key] for key in keys})
    cfg.trainer.accelerator, cfg.trainer.precision = (chosen[key] for key in keys)
    device = torch.device(cfg.trainer.accelerator)
    return cfg, device, autocast(device, cfg.trainer.precision)


def autocast(device: torch.device, precision: str) -> Callable[[], Any]:
    return partial(torch.autocast, device.type, torch.bfloat16, enabled=precision == "bf16-mixed")


def built(cfg: DictConfig, device: torch.device, compiled: bool = False) -> DDPM:
    model = build_model(OmegaConf.to_container(cfg, resolve=True)).to(device)  # type: ignore[arg-type]
    speed_up(model, cfg.channels_last, compiled)
    return model.train()


def bare_step(model: DDPM, images: Tensor, precision: Callable[[], Any]) -> Callable[[], None]:
    """Return a training step without a loop around it: loss, gradient, clipping, optimizer, average."""
    optimizer = model.configure_optimizers()["optimizer"]
    weights = model.trained_parameters()

    def step() -> None:
        t = torch.randint(model.diffusion.num_steps, (len(images),), device=images.device)
        with precision():
            loss = model.objective(model.network, model.diffusion, images, t, torch.randn_like(images)).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        model.ema.update_parameters(model.network)

    return step


class InTurns(L.Callback):
    """Measures the batches of a training, and the other cases between them."""

    def __init__(self, case: Case, others: Sequence[Case], rounds: int):
        self.case, self.others, self.rounds = case, others, rounds
        self.done = -2  # batches; the first two warm up

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        self.done += 1
        if self.done == self.case.calls:
            self.case.seconds.append((timer() - self.start) / self.done)
            for other in self.others:
                other.measure()
            self.done = 0
        trainer.should_stop = len(self.case.seconds) == self.rounds
        if self.done == 0:
            self.start = timer()


def step(args: argparse.Namespace) -> list[Case]:
    """A training step, in Lightning's loop and bare, against its own convolutions and matmuls."""
    cfg, device, precision = composed(
        args, "callbacks.pictures=null", "callbacks.best=null", "trainer.limit_val_batches=0"
    )
    model, plain = built(cfg, device, cfg.compile), built(cfg, device)
    images = torch.rand(args.batch, *model.image_shape, device=device) * 2 - 1
    bare, limits = (
        bare_step(model, images, precision),
        roofline(bare_step(plain, images, precision), device, args.batch),
    )
    cases = [Case("bare step", bare, args.batch, limits[0].flops), *limits]
    if args.peers:
        cases += peers(args, device, cfg.trainer.precision, train=True)
    for case in cases:
        case.warm_up(args.seconds)
    loop = Case("ddpm train", bare, args.batch, cases[0].flops, cases[0].calls)
    with tempfile.TemporaryDirectory() as folder, Run.open(Path(folder)) as run:
        cfg.paths.run = folder
        ignore_expected_warnings()
        data = build(cfg.data).ready()
        callbacks = [build(node) for node in cfg.callbacks.values() if node is not None]
        trainer = build_trainer(cfg, [*callbacks, InTurns(loop, cases, args.rounds)], data)
        connect(trainer, run, build_loggers(cfg.logger, run, 0))
        trainer.fit(built(cfg, device, cfg.compile), data)
    return [loop, *cases]


@torch.no_grad()
def sample(args: argparse.Namespace) -> list[Case]:
    """The network's forward pass, and sampling with --steps evaluations, against its convolutions and matmuls."""
    cfg, device, precision = composed(args)
    model, plain = built(cfg, device, cfg.compile).eval(), built(cfg, device).eval()
    x = torch.randn(args.batch, *model.image_shape, device=device)
    t = torch.zeros(args.batch, dtype=torch.int64, device=device)

    def forward(model: DDPM) -> None:
        with precision():
            model.ema(x, t)

    def chain() -> None:
        with precision():
            model.sample(args.batch, steps=args.steps, seed=0, batch_size=args.batch)

    limits = roofline(partial(forward, plain), device, args.batch)
    flops = limits[0].flops
    cases = [
        Case(f"model.sample, {args.steps} steps", chain, args.batch, args.steps * flops),
        Case("forward pass", partial(forward, model), args.batch, flops),
        *limits,
    ]
    if args.peers:
        cases += peers(args, device, cfg.trainer.precision, train=False)
    measure(cases, args)
    return cases


def peers(args: argparse.Namespace, device: torch.device, precision: str, train: bool) -> list[Case]:
    """Return networks of other libraries of about the size of `unet_small`, each in its fastest setting here."""
    from denoising_diffusion_pytorch import Unet
    from diffusers import UNet2DModel

    x = torch.randn(args.batch, 1, 28, 28, device=device)
    t = torch.randint(1000, (args.batch,), device=device)
    blocks = {
        "down_block_types": ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    }
    networks: dict[str, Callable[[], nn.Module]] = {
        "denoising-diffusion-pytorch": lambda: Unet(dim=32, dim_mults=(1, 2, 4), channels=1),
        "diffusers": lambda: UNet2DModel(28, 1, 1, block_out_channels=(32, 64, 128), layers_per_block=2, **blocks),
    }

    def case(name: str, layout: str, precision: str) -> Case:
        network = networks[name]().to(device, memory_format=LAYOUTS[layout])
        optimizer = torch.optim.AdamW(network.parameters())

        def work() -> None:
            with torch.set_grad_enabled(train), autocast(device, precision)():
                output = network(x, t)
                loss = (getattr(output, "sample", output) - x).square().mean()
            if train:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

        with FlopCounterMode(display=False) as counter:
            work()
        title = f"{name} {version(name)}, {layout}, {precision}"
        return Case(title, work, args.batch, counter.get_total_flops())

    chosen = []
    for name in networks:
        settings = [case(name, *setting) for setting in product(LAYOUTS, sorted({precision, "32-true"}))]
        chosen.append(min(settings, key=lambda case: case.warm_up(args.seconds)))
    return chosen


def forever(loader: Iterable[Any]) -> Iterator[Any]:
    while True:
        yield from loader


def input_(args: argparse.Namespace) -> list[Case]:
    """Batches of the data set, beside the bare indexing of the same images and a DataLoader that reads them singly."""
    cfg, device, _ = composed(args)
    data = build(cfg.data).ready()
    images, labels = data.split("train")
    loader = iter(data.train_dataloader())
    single = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(images, labels), args.batch, shuffle=True, drop_last=True
    )

    plain = forever(single)

    def ours() -> None:
        data.on_after_batch_transfer([part.to(device) for part in next(loader)], 0)

    def indexed() -> None:
        images[torch.randint(len(images), (args.batch,))].to(device).float().div(127.5).sub(1)

    def plain_loader() -> None:
        next(plain)[0].to(device).float().div(127.5).sub(1)

    cases = [
        Case("batches of the data set", ours, args.batch),
        Case("images[indices]", indexed, args.batch),
        Case("a plain DataLoader", plain_loader, args.batch),
    ]
    measure(cases, args)
    return cases


def startup(args: argparse.Namespace) -> list[Case]:
    """Seconds of whole commands; the first training step ends its process as soon as it is done."""
    ddpm = [sys.executable, "-m", "ddpm"]
    first = ["+callbacks.first._target_=benchmark.ExitAfterFirstStep", f"trainer.accelerator={args.device}"]

    def command(*words: str) -> None:
        env = os.environ | {"PYTHONPATH": str(ROOT / "scripts")}
        subprocess.run(words, cwd=folder, env=env, check=True, capture_output=True, stdin=subprocess.DEVNULL)

    train = (*ddpm, "train", "experiment=quickstart", "restart=true", *first)
    commands = {
        "import torch, lightning": (sys.executable, "-c", "import torch, lightning"),
        "first step of ddpm train": train,
        "ddpm": ddpm,
        "ddpm train --help": (*ddpm, "train", "--help"),
        "ddpm train --cfg job": (*ddpm, "train", "--cfg", "job"),
    }
    with tempfile.TemporaryDirectory() as folder:
        cases = [Case(name, partial(command, *words), calls=1) for name, words in commands.items()]
        measure(cases, args)
    return cases


class ExitAfterFirstStep(L.Callback):
    def on_train_batch_end(self, *args: Any) -> None:
        os._exit(0)


def scale(args: argparse.Namespace) -> list[Case]:
    """Start from a folder of pictures twice, each time in a new process, and read batches from it."""
    with tempfile.TemporaryDirectory() as folder:
        make_pictures(Path(folder) / "pictures", args.pictures)
        cases = []
        for name in ("first start", "second start"):
            with get_context("spawn").Pool(1) as pool:
                found = pool.apply(start_from, (folder, args.pictures, args.batch))
            note = (
                f"{found['anonymous']:,.0f} MB of memory above the imports, {found['mapped']:,.0f} MB of mapped files"
            )
            cases.append(Case(f"{name}: {found['setup']:.2f} s, {note}", int, args.pictures, seconds=[found["setup"]]))
            cases.append(Case(f"batches after the {name}", int, args.batch, seconds=found["batches"]))
    return cases


def make_pictures(folder: Path, number: int) -> None:
    from PIL import Image

    folder.mkdir()
    noise = os.urandom(64 * 64 * 3 + number)
    for i in range(number):
        if i % 1000 == 0:
            (folder / f"{i // 1000:04}").mkdir()
        Image.frombytes("RGB", (64, 64), noise[i : i + 64 * 64 * 3]).save(folder / f"{i // 1000:04}/{i:07}.bmp")


def start_from(folder: str, pictures: int, batch: int) -> dict[str, Any]:
    """Return seconds and MB; runs in a process of its own, because memory is that of the whole process."""
    from ddpm.data import ImageFolder

    before = memory()
    start = time.perf_counter()
    data = ImageFolder(Path(folder) / "pictures", batch, image_size=64, cache=Path(folder) / "cache").ready()
    setup = time.perf_counter() - start
    loader = iter(data.train_dataloader())
    batches = []
    for _ in range(max(1, pictures // batch)):
        start = time.perf_counter()
        data.on_after_batch_transfer(next(loader), 0)
        batches.append(time.perf_counter() - start)
    after = memory()
    return {"setup": setup, "batches": batches} | {key: after[key] - before[key] for key in after}


def memory() -> dict[str, float]:
    """Return MB of this process: its own memory, and files that are mapped into it. Zeros without /proc."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    size = {line.split(":")[0]: int(line.split()[1]) / 1000 for line in lines if line.endswith(" kB")}
    return {"anonymous": size.get("RssAnon", 0.0), "mapped": size.get("RssFile", 0.0)}


# Results --------------------------------------------------------------------------------------------------------------


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": median(values), "min": min(values), "max": max(values)}


def row(case: Case, limit: list[float], peak: list[float]) -> dict[str, Any]:
    """Return the numbers of a case. `limit` and `peak` are FLOP/s in each round, empty if there are none."""
    found: dict[str, Any] = {"name": case.name, "seconds": spread(case.seconds)}
    if case.images:
        found["images_per_second"] = spread([case.images / s for s in case.seconds])
    if case.flops:
        rate = [case.flops / s for s in case.seconds]
        found["gflops_per_second"] = spread([r / 1e9 for r in rate])
        found["share_of_roofline"] = spread([r / x for r, x in zip(rate, limit, strict=True)])
        found["share_of_matmul"] = spread([r / x for r, x in zip(rate, peak, strict=True)])
    return found


def rows(cases: Sequence[Case]) -> list[dict[str, Any]]:
    """Return the numbers of all cases, each with its share of the faster layout of the network's own operations."""
    rates = {case.name: [case.flops / s for s in case.seconds] for case in cases if case.flops}
    limits = [rate for name, rate in rates.items() if name.startswith("its operations")]
    peaks = [rate for name, rate in rates.items() if name.startswith("matmul")]
    return [row(case, [max(x) for x in zip(*limits, strict=True)], peaks[0] if peaks else []) for case in cases]


COLUMNS = {
    "name": "",
    "seconds": "seconds",
    "images_per_second": "images/s",
    "gflops_per_second": "GFLOP/s",
    "share_of_roofline": "of the roofline",
    "share_of_matmul": "of the matmul",
}


def show(title: str, found: Sequence[dict[str, Any]], console: Console) -> None:
    def cell(value: Any) -> str:
        if not isinstance(value, dict):
            return str(value)
        middle, low, high = (f"{x:,.0f}" if x >= 100 else f"{x:.3g}" for x in value.values())
        return f"{middle} [{low}, {high}]"

    table = Table(title=title)
    used = [key for key in COLUMNS if any(key in row for row in found)]
    if "images_per_second" in used:
        used.remove("seconds")
    for key in used:
        table.add_column(COLUMNS[key], justify="left" if key == "name" else "right")
    for row in found:
        table.add_row(*(escape(cell(row.get(key, ""))) for key in used))
    console.print(table)


def about(args: argparse.Namespace) -> dict[str, Any]:
    """Return what the numbers depend on: versions, device, processor, threads, other load, command."""
    names = ("ddpm-lightning", "torch", "lightning", "denoising-diffusion-pytorch", "diffusers")
    limits = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "OMP_NUM_THREADS")
    return {
        "command": shlex.join([f"scripts/{Path(sys.argv[0]).stem}", *sys.argv[1:]]),
        "versions": {"python": platform.python_version()}
        | {name: found for name in names if (found := installed_version(name))},
        "device": device_name(torch.device(args.device)),
        "processor": processor(),
        "used": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "environment": {name: os.environ[name] for name in limits if name in os.environ},
        "load": os.getloadavg()[0],
    }


COMMANDS = {"step": step, "sample": sample, "input": input_, "startup": startup, "scale": scale}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("overrides", nargs="*", help="of ddpm train")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, xpu")
    parser.add_argument("--peers", action="store_true", help="measure other libraries too (step, sample)")
    parser.add_argument("--batch", type=int, default=128, help="images in a batch")
    parser.add_argument("--steps", type=int, default=20, help="evaluations of the network (sample)")
    parser.add_argument("--pictures", type=int, default=200_000, help="number of pictures (scale)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="of one measurement; at least one call is made")
    parser.add_argument("--out", type=Path, default=ROOT / "outputs" / "benchmark", help="folder of the JSON file")
    args = parser.parse_intermixed_args(argv)
    for key, option in {"data.batch_size": "--batch", "trainer.accelerator": "--device"}.items():
        if any(word.lstrip("+").startswith(f"{key}=") for word in args.overrides):
            parser.error(f"{key} is set by {option}")
    if args.command in ("startup", "scale") and args.overrides:
        parser.error(f"{args.command} takes no overrides")
    if "trainer.precision=16-mixed" in args.overrides:
        parser.error("the bare step has no loss scaling: use trainer.precision=bf16-mixed or 32-true")

    facts = about(args)
    try:
        found = rows(COMMANDS[args.command](args))
    except UserError as error:
        parser.error(str(error))
    console = Console(width=max(120, Console().width))
    show(facts["command"], found, console)
    console.print(
        f"{facts['device']}, {facts['processor']['name']}, {facts['used']}, load {facts['load']:.1f} before the start"
    )
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"{args.command}.json"
    path.write_text(json.dumps(facts | {"results": found}, indent=2) + "\n")
    console.print(str(path))


if __name__ == "__main__":
    main()
