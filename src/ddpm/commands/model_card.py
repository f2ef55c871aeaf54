"""The model card of an exported model: what it is, how it was trained, what was measured, how to load it."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose
from omegaconf import OmegaConf

from ddpm.config import conf_dir, leaves, option_name, override, trusted_targets
from ddpm.runs.files import read_json
from ddpm.training.building import PARTS
from ddpm.training.module import DDPM

TABLES = {
    "quality": (
        "Samples (`…_real`: as many real images; `…_ratio`: the quotient)",
        "samples_judged",
        (
            "sampler",
            "spacing",
            "network_evaluations",
            "guidance_scale",
            "guidance_interval",
            "features",
            "precision",
            "seed",
        ),
    ),
    "bpd": ("Variational bound in bits/dim", "images", ("timesteps_per_image", "variance", "clip_x0", "seed")),
}
"""the tables of the card by the first part of a number's name: title, what n counts, conditions that are repeated"""
MAX_TEXT = 200
"""characters of a value"""


def model_card(
    model: DDPM,
    config: Mapping[str, Any],
    step: int,
    weights: str,
    name: str,
    evaluations: Sequence[Mapping[str, Any]],
    license: str | None,
    dtype: str | None,
) -> str:
    """Return the card, Markdown with the header that the Hugging Face Hub reads.

    Args:
        config: of the model, without folders of this machine.
        step: optimizer steps of the weights.
        weights: which average of the weights it is.
        name: the folder's name.
        evaluations: metrics.json of evaluations of these weights.
        license: of the weights.
        dtype: the type that the weights were rounded to, if they were.
    """
    parameters = sum(weight.numel() for weight in model.network.parameters())
    numbers = list(_numbers(evaluations))
    diffusion, (channels, height, width) = model.diffusion, model.image_shape
    data = option_name(str(config["data"].get("_target_")))
    kind = "" if model.num_classes is None else f"class-conditional, {model.num_classes} classes, "
    header = {"license": license or "unknown", "library_name": "ddpm-lightning", "tags": ["diffusion", "ddpm"]}
    return "\n".join(
        [
            "---",
            *(f"{key}: {json.dumps(value)}" for key, value in header.items()),
            "---",
            f"# {_plain(name)}",
            "",
            f"A denoising diffusion model (DDPM) of images of {channels}×{height}×{width}: {kind}{parameters:,} "
            f"parameters, {diffusion.num_steps} timesteps, prediction of {diffusion.prediction}. The weights are the "
            f"moving average ({weights}) after {step:,} optimizer steps.",
            "",
            "## Data",
            "",
            f"`data={_plain(data)}`, the training split.",
            "",
            "## Recipe",
            "",
            "Settings that differ from the defaults of `ddpm train`; `config.yaml` has all of them:",
            "",
            *(f"    {line}" for line in _recipe(config)),
            "",
            "## Numbers",
            "",
            *(numbers or ["Not evaluated.", ""]),
            "## Limits",
            "",
            "The model draws images like those of its data set, with the gaps and errors of this set, and only of this "
            "size. The numbers hold for the test split of this data set and for the settings beside them"
            + (f"; they were measured before the weights were rounded to {dtype}." if dtype and numbers else "."),
            "",
            "## Licence",
            "",
            f"{license}." if license else "None was stated for these weights: ask the person who gave them to you.",
            "",
            "## Load",
            "",
            *_example(config, name, model.num_classes),
            "",
        ]
    )


def _plain(text: object) -> str:
    """Return a text in one short line without the signs that Markdown reads. Names may come from a stranger."""
    return _one_line("".join(" " if c in "`<>[]|*\\" else c for c in str(text)))


def _one_line(text: str) -> str:
    """Return a text in one short line."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:MAX_TEXT]


def _recipe(config: Mapping[str, Any]) -> list[str]:
    default: Any = OmegaConf.to_container(compose("train"), resolve=True)
    before = dict(leaves({name: default.get(name) for name in (*PARTS, "trainer")}))
    now = dict(leaves({name: config.get(name) for name in (*PARTS, "trainer")}))
    now.pop("data.root", None)  # the same for all
    changed = [key for key in now if key not in before or repr(before[key]) != repr(now[key])]
    return [_one_line(f"{key}={now[key]}") for key in changed] or ["(none)"]


def evaluations_of(outputs: Path, checkpoint: Path, step: int, weights: str) -> list[dict[str, Any]]:
    """Return the metrics.json of each evaluation of a checkpoint at this step, the newest first.

    Args:
        weights: which average of the weights was evaluated.
    """
    files = sorted((outputs / "evaluate").rglob("metrics.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    return [
        metrics
        for metrics in map(read_json, files)
        if metrics.get("step") == step
        and metrics.get("weights") == weights
        and isinstance(metrics.get("checkpoint"), str)
        and Path(metrics["checkpoint"]).resolve() == checkpoint.resolve()
    ]


def _numbers(evaluations: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the tables, each from the evaluation with the most samples or images; of equal ones, from the first."""
    for group, (title, counted, conditions) in TABLES.items():
        found = [(metrics, rows) for metrics in evaluations if (rows := list(_rows(metrics, group)))]
        if not found:
            continue
        metrics, rows = max(found, key=lambda pair: pair[0].get(counted, 0))
        facts = [f"{key} {metrics[key]}" for key in conditions if metrics.get(key) is not None]
        yield f"{title}, from `ddpm evaluate` with n = {metrics.get(counted)}: {_plain(', '.join(facts))}."
        yield from ("", "| measure | value | standard error |", "| --- | ---: | ---: |", *rows, "")


def _rows(metrics: Mapping[str, Any], group: str) -> Iterator[str]:
    """Yield a line of the table for each number of a group that can have an error."""
    for name, value in metrics.items():
        has_error = name.startswith(f"{group}/") and f"{name}_se" in metrics
        if has_error and name.count("/") == 1 and isinstance(value, (int, float)) and math.isfinite(value):
            error = metrics[f"{name}_se"]
            yield f"| {_plain(name)} | {value:.4g} | {f'{error:.2g}' if isinstance(error, (int, float)) else '–'} |"


def _example(config: Mapping[str, Any], name: str, classes: int | None) -> Iterator[str]:
    yield from (
        "```python",
        "import ddpm  # pip install from the project's clone: the `ddpm` of PyPI is another package",
    )
    yield ""
    yield f"model = ddpm.load({json.dumps(name)})  # this folder; from the Hugging Face Hub: hf://OWNER/NAME"
    labels = "" if classes is None else f"labels=range({classes}), "
    n = max(20, classes or 0)
    yield f"images = model.sample({n}, {labels}seed=0)  # [{n}, C, H, W] in [-1, 1]"
    words = [override("ckpt", name), *([] if classes is None else ["labels=all"])]
    yield from ("```", "", f"On the command line: `ddpm sample {_plain(' '.join(words))}`.")
    own = sorted(_own_targets(config))
    if own:
        yield ""
        targets = ", ".join(f"`{_plain(target)}`" for target in own)
        yield (
            f"The model needs code and YAMLs that are not part of ddpm: {targets}. "
            "Pass the folder of the YAMLs as `config_dir=` or `--config-dir`."
        )


def _own_targets(config: Mapping[str, Any]) -> set[str]:
    parts = {name: config.get(name) for name in ("module", "model", "diffusion", "objective")}
    named = {value for key, value in leaves(parts, into_lists=True) if key.rpartition(".")[2] == "_target_"}
    return {str(target) for target in named} - trusted_targets([conf_dir()])
