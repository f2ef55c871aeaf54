#!/usr/bin/env python
"""Train and evaluate a row of the README's tables again, and say whether its numbers are the same within their errors.

    scripts/reproduce --list                             # the rows, and which have results
    scripts/reproduce mnist                              # trains, evaluates, compares with outputs/results/mnist.json
    scripts/reproduce speedrun experiment=mine --to outputs/results/speedrun_mine.json
    scripts/reproduce --table                            # writes the tables of the README from outputs/results/*.json

scripts/reproduce.yaml declares the rows. Finished runs are not trained again; the same command continues an interrupted
one. If the row has no results yet, they are written to outputs/results/ROW.json, else to outputs/reproduce/ROW.json.
The exit code is 1 if the numbers do not agree. Other arguments are overrides that replace those of the row's training.
"""

import argparse
import json
import math
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, variance
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from ddpm.config import conf_dir, override
from ddpm.errors import UserError
from ddpm.launch.sweeps import grid
from ddpm.runs import (
    Run,
    Status,
    find_checkpoint,
    overrides_with_effect,
    results_directory,
    run_directory,
    run_name,
    write_json,
)
from ddpm.runs.files import read_json

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "outputs" / "results"
PAGES = (ROOT / "README.md", RESULTS / "README.md")
"""the pages with tables"""

NUMBERS = (
    *("quality/fd_test", "quality/fd_test_real", "quality/fd_test_ratio", "quality/kid", "quality/as_asked"),
    *("quality/class_tv", "quality/pixel_copies", "quality/pixel_copies_real"),
    *("quality/feature_copies", "quality/feature_copies_real"),
    *("bpd/total", "bpd/kl", "bpd/reconstruction", "bpd/small/total", "bpd/large/total", "bpd/optimal/total"),
    "seconds_per_1000_images",
)
"""keys of an evaluation's metrics.json whose numbers are kept, with their errors"""
SETTINGS = (
    *("step", "quality/n", "sampler", "spacing", "network_evaluations"),
    *("images", "timesteps_per_image", "variance"),
)
"""keys of metrics.json that must be equal in results that are compared"""
COMPARED = ("quality/fd_test", "bpd/total", "quality/as_asked")
"""keys that must agree within two standard errors; few, because one comparison of twenty fails by chance"""
FEATURES = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")
"""the widest vector instructions first; the tables name the first that a processor has"""
TARGETS = (10, 5, 3)
"""multiples of the floor in the speedrun"""

Command = Callable[[Sequence[str]], int]
"""runs a command and returns its exit code"""


# Rows -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """An entry of scripts/reproduce.yaml. Each combination of overrides, except for the seed, is a line of results."""

    table: str
    evaluate: list[list[str]]
    """overrides of each evaluation"""
    train: list[str] | None = None
    """overrides of `ddpm train`"""
    script: list[str] | None = None
    """a program that trains, and its options"""
    package: list[str] | None = None
    """`ckpt=` with models of the package, which are trained already"""


def read_rows() -> dict[str, Row]:
    rows = yaml.safe_load((ROOT / "scripts" / "reproduce.yaml").read_text(encoding="utf-8"))
    readers: dict[str, Callable[[Any], Any]] = {"table": str, "evaluate": lambda texts: [*map(shlex.split, texts)]}
    return {
        name: Row(**{key: readers.get(key, shlex.split)(value) for key, value in row.items()})
        for name, row in rows.items()
    }


def jobs(overrides: Sequence[str]) -> list[list[str]]:
    """Return the overrides of each run: the combinations of all lists of values, also of those in conf/sweep."""
    found: list[str] = []
    for word in overrides:
        if (sweep := re.fullmatch(r"\+sweep=(\w+)", word)) is None:
            found.append(word)
        else:
            params = OmegaConf.load(conf_dir() / "sweep" / f"{sweep[1]}.yaml").hydra.sweeper.params
            found += [f"{key}={values}" for key, values in params.items()]
    return grid(OverridesParser.create().parse_overrides(found))


def varied(all_jobs: Sequence[Sequence[str]], job: Sequence[str]) -> str:
    """Return the overrides of a job that not all jobs have, except for the seed: the name of its line."""
    own = [word for word in job if not all(word in other for other in all_jobs) and not word.startswith("seed=")]
    return " ".join(own)


def config_tree() -> AbstractContextManager[Any]:
    """Let Hydra compose from conf/. Close it before a command starts: tests run commands in this process."""
    return initialize_config_dir(str(conf_dir()), version_base="1.3")


# Train and evaluate ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trained:
    """What a line's evaluations start from."""

    source: str
    """the override of `ddpm evaluate`"""
    checkpoint: Path | None
    """None for samples of another library"""
    command: str | None
    """the command that trained it; None for a model of the package"""
    numbers: dict[str, float]
    provenance: dict[str, Any]


def train(job: Sequence[str], outputs: Path, run: Command) -> Trained:
    """Train a run, or continue it, or find it finished.

    Raises:
        UserError: the training failed, or the run has done more steps than `job` asks for.
    """
    with config_tree():
        cfg = compose("train", list(job), return_hydra_config=True)
        effective = overrides_with_effect("train", job)
    experiment = cfg.hydra.runtime.choices.get("experiment")
    directory = run_directory("train", outputs, effective, experiment, cfg.not_identity, cfg.name)
    if (status := Status.read(directory)) and status.step > cfg.trainer.max_steps:
        raise UserError(
            f"{directory} is at step {status.step}, past the {cfg.trainer.max_steps} of this line: "
            "move or delete the directory, and repeat."
        )
    command = ["ddpm", "train", *job]
    start(command, outputs, run)
    done = Run.read(directory)
    numbers = {"seconds": done.status.seconds, "images_per_second": done.read_metrics().get("images/s")}
    made = read_json(directory / "provenance.json")
    last = directory / "last"
    return Trained(override("ckpt", last), find_checkpoint(str(last)), shlex.join(command), numbers, made)


def take(job: Sequence[str]) -> Trained:
    """Take a model of the package. Its evaluations say what they were made with.

    Raises:
        UserError: `job` has more than its name.
    """
    if len(job) > 1:
        raise UserError(f"nothing is trained in this row, so {shlex.join(job[1:])} has no effect.")
    return Trained(job[0], find_checkpoint(job[0].removeprefix("ckpt=")), None, {}, {})


def train_elsewhere(program: str, job: Sequence[str], outputs: Path, run: Command) -> Trained:
    """Run a program that trains another library's model, unless it has done so before."""
    directory = outputs / Path(program).stem / run_name(job)
    command = [f"scripts/{program}", *job]
    if not (directory / "metrics.json").exists():
        start(command, outputs, run, [f"to={directory}"])
    numbers, made = (read_json(directory / name) for name in ("metrics.json", "provenance.json"))
    return Trained(override("samples", directory / "samples.npz"), None, shlex.join(command), numbers, made)


def evaluate(
    trained: Trained, job: Sequence[str], outputs: Path, run: Command
) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Evaluate what was trained, and return the command, its metrics.json and its provenance.json."""
    overrides = [trained.source, *job]
    start(["ddpm", "evaluate", *overrides], outputs, run)
    with config_tree():
        not_identity = list(compose("evaluate").not_identity)
        effective = overrides_with_effect("evaluate", overrides)
    if trained.checkpoint is None:
        directory = run_directory("evaluate", outputs, effective, not_identity=not_identity)
    else:
        directory = results_directory("evaluate", trained.checkpoint, outputs, effective, not_identity)
    command = shlex.join(["ddpm", "evaluate", *overrides]).replace(f"{outputs.parent}/", "")
    return command, read_json(directory / "metrics.json"), read_json(directory / "provenance.json")


def start(command: Sequence[str], outputs: Path, run: Command, more: Sequence[str] = ()) -> None:
    """Run a command of this clone.

    Raises:
        UserError: the command failed.
    """
    console.rule(shlex.join(command), align="left")
    place = [override("paths.outputs", outputs)] if command[0] == "ddpm" else []
    if code := run([*command, *more, *place]):
        raise UserError(f"`{shlex.join(command)}` failed with exit code {code}. Repeat your command to continue.")


def run_process(command: Sequence[str]) -> int:
    program, *arguments = command
    words = ["-m", "ddpm", *arguments] if program == "ddpm" else [str(ROOT / program), *arguments]
    return subprocess.run([sys.executable, *words], stdin=subprocess.DEVNULL).returncode


def measure(row: Row, more: Sequence[str], outputs: Path, run: Command = run_process) -> dict[str, Any]:
    """Train and evaluate all lines of a row, and return its results."""
    options = row.script[1:] if row.script is not None else row.train or row.package
    assert options is not None
    trainings = jobs([*options, *more])
    lines: dict[str, dict[str, list[Any]]] = {}
    for training in trainings:
        if row.script is not None:
            trained = train_elsewhere(row.script[0], training, outputs, run)
        else:
            trained = take(training) if row.package else train(training, outputs, run)
        for overrides in row.evaluate:
            evaluations = jobs(overrides)
            for evaluation in evaluations:
                command, metrics, made = evaluate(trained, evaluation, outputs, run)
                name = " ".join(filter(None, (varied(trainings, training), varied(evaluations, evaluation))))
                line = lines.setdefault(name, {"commands": [], "metrics": [], "provenance": []})
                if trained.command is None:
                    line["provenance"].append(made)
                elif trained.command not in line["commands"]:
                    line["commands"].append(trained.command)
                    line["metrics"].append(trained.numbers)
                    line["provenance"].append(trained.provenance)
                line["commands"].append(command)
                line["metrics"].append(metrics)
    return {"lines": [summary(name, line) for name, line in lines.items()]}


# Results --------------------------------------------------------------------------------------------------------------


def summary(name: str, line: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """Return the numbers of a line over its seeds, and what they were made with."""
    evaluations = line["metrics"]
    numbers = {}
    for key in ("seconds", "images_per_second", *NUMBERS):
        found = [(e[key], e.get(f"{key}_se")) for e in evaluations if e.get(key) is not None]
        if found:
            numbers[key] = combined(*zip(*found, strict=True))
    if shares := [found for e in evaluations if (found := class_deviation(e))]:
        numbers["quality/class_deviation"] = combined(*zip(*shares, strict=True))
    settings = {key: e[key] for e in evaluations for key in SETTINGS if key in e}
    made = line["provenance"][0]
    return {
        "name": name,
        "commands": line["commands"],
        "settings": settings,
        "numbers": numbers,
        "made_with": {key: made.get(key) for key in ("versions", "device", "processor", "time")}
        | {"commit": (made.get("git") or {}).get("commit")},
    }


def combined(values: Sequence[float], errors: Sequence[float | None]) -> dict[str, Any]:
    """Return the mean over runs and its standard error: from the spread of the runs or, if larger, from their errors.

    Equal values are one measurement, such as the same measure of the same real images.
    """
    k = len(set(values))
    found: dict[str, Any] = {"value": fmean(values), "se": None, "runs": list(values)}
    if None not in errors:
        spread = variance(values) if k > 1 else 0.0
        found["se"] = math.sqrt(max(spread, fmean(error**2 for error in errors)) / k)  # type: ignore[operator]
    return found


def class_deviation(metrics: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return the largest difference between a class's share of the samples and of the real images, and its error."""
    key = "quality/class_share_"
    shares = [(metrics[f"{key}{i}"], metrics[f"{key}{i}_real"]) for i in range(1000) if f"{key}{i}_real" in metrics]
    if not shares:
        return None
    share, real = max(shares, key=lambda pair: abs(pair[0] - pair[1]))
    return abs(share - real), math.sqrt(share * (1 - share) / metrics["quality/n"])


def compare(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Print the numbers of two results side by side, and return whether they agree within two standard errors."""
    table = Table("line", "number", "old", "new", "difference", "combined error", "agrees", title_justify="left")
    for column in table.columns:
        column.no_wrap = True
    agree = True
    before, after = ({line["name"]: line for line in results["lines"]} for results in (old, new))
    for name in [*before, *(name for name in after if name not in before)]:
        if name not in before or name not in after:
            table.add_row(name, "", *("" if name in found else "missing" for found in (before, after)), "", "", "no")
            agree = False
            continue
        for key in sorted(before[name]["settings"].keys() | after[name]["settings"].keys()):
            values = [line["settings"].get(key) for line in (before[name], after[name])]
            if values[0] != values[1]:
                table.add_row(name, key, *map(str, values), "", "", "no")
                agree = False
        for key, first in before[name]["numbers"].items():
            second = after[name]["numbers"].get(key)
            if second is None:
                if key in COMPARED:
                    table.add_row(name, key, plus_minus(first), "missing", "", "", "no")
                    agree = False
                continue
            difference = second["value"] - first["value"]
            error, verdict = None, ""
            if first["se"] is not None and second["se"] is not None:
                error = math.hypot(first["se"], second["se"])
            if key in COMPARED and error is not None:
                agrees = abs(difference) <= 2 * error
                agree, verdict = agree and agrees, "yes" if agrees else "no"
            shown = "" if error is None else f"{error:.2g}"
            table.add_row(name, key, plus_minus(first), plus_minus(second), f"{difference:+.3g}", shown, verdict)
    console.print(table)
    return agree


# The README's tables --------------------------------------------------------------------------------------------------


def plus_minus(number: Mapping[str, Any] | None, scale: float = 1) -> str:
    """Return the number and its error, with two digits of the error."""
    if number is None:
        return ""
    value, se = number["value"] * scale, number["se"]
    if not se:
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    digits = max(0, 1 - math.floor(math.log10(se * scale)))
    return f"{value:.{digits}f} ± {se * scale:.{digits}f}"


COLUMNS: dict[str, Callable[[Mapping[str, Any], Mapping[str, Any]], str]] = {
    "steps": lambda s, n: f"{s['step']:,}" if "step" in s else "",
    "seeds": lambda s, n: str(max((len(number["runs"]) for number in n.values()), default="")),
    "minutes": lambda s, n: plus_minus(n.get("seconds"), 1 / 60),
    "images/s": lambda s, n: plus_minus(n.get("images_per_second")),
    "n": lambda s, n: f"{s['quality/n']:,}" if "quality/n" in s else "",
    "spacing": lambda s, n: s.get("spacing", ""),
    "network evaluations": lambda s, n: str(s.get("network_evaluations", "")),
    "s / 1,000 images": lambda s, n: plus_minus(n.get("seconds_per_1000_images")),
    "Fréchet distance": lambda s, n: plus_minus(n.get("quality/fd_test")),
    "real": lambda s, n: plus_minus(n.get("quality/fd_test_real")),
    "× real": lambda s, n: plus_minus(n.get("quality/fd_test_ratio")),
    "class shares off by [%]": lambda s, n: plus_minus(n.get("quality/class_deviation"), 100),
    "label accuracy [%]": lambda s, n: plus_minus(n.get("quality/as_asked"), 100),
    "bits/dim": lambda s, n: plus_minus(n.get("bpd/total")),
}


def markdown(header: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table without its empty columns."""
    used = [i for i in range(len(header)) if any(row[i] for row in body)]
    rows = [header, ["---"] * len(header), *body]
    return ["| " + " | ".join(row[i] for i in used) + " |" for row in rows]


def lines_table(found: Mapping[str, Any]) -> list[str]:
    """Return a table with a row for each line of the results."""
    body = [
        [f"`{name}`", line["name"], *(cell(line["settings"], line["numbers"]) for cell in COLUMNS.values())]
        for name, results in found.items()
        for line in results["lines"]
    ]
    return markdown(["row", "", *COLUMNS], body)


def speedrun_table(found: Mapping[str, Any]) -> list[str]:
    """Return a table with a row for each recipe: the seconds of training until its samples are near the floor."""
    body = []
    for name, results in found.items():
        last = results["lines"][-1]
        seconds = (seconds_to(target, results["lines"]) for target in TARGETS)
        cells = ["not reached" if s is None else f"{s:,.0f} s" for s in seconds]
        body.append([f"`{name}`", *cells, plus_minus(last["numbers"]["quality/fd_test_ratio"])])
    return markdown(["recipe", *(f"{target} × real" for target in TARGETS), "at its end, × real"], body)


def seconds_to(target: float, lines: Iterable[Mapping[str, Any]]) -> float | None:
    """Return the training time of the first line whose Fréchet distance is at most `target` times the floor."""
    for line in lines:
        numbers = line["numbers"]
        if numbers["quality/fd_test_ratio"]["value"] <= target:
            return float(numbers["seconds"]["value"])
    return None


def tables(folder: Path = RESULTS) -> dict[str, str]:
    """Return the README's tables in Markdown, by name. A table without results says how to make them."""
    rows = read_rows()
    files = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}
    made: dict[str, str] = {}
    for table in dict.fromkeys(row.table for row in rows.values()):
        names = [name for name, row in rows.items() if row.table == table]
        found = {stem: results for name in names for stem, results in files.items() if results["row"] == name}
        if not found:
            made[table] = f"No results yet: `scripts/reproduce {names[0]}`"
            continue
        lines = speedrun_table(found) if table == "speedrun" else lines_table(found)
        made[table] = "\n".join([*lines, "", made_with(found)])
    return made


def made_with(found: Mapping[str, Any]) -> str:
    """Return one sentence for each machine and torch version that the results were made with."""
    groups: dict[str, list[str]] = {}
    for name, results in found.items():
        made = results["lines"][0]["made_with"]
        parts = [made["device"]] if not (made.get("device") or "cpu").startswith("cpu") else []
        if machine := made.get("processor"):
            widest = next((word for word in FEATURES if word in machine["features"]), "no avx2")
            threads = re.search(r"(\d+) threads", made.get("device") or "")
            used = f"{threads[1]} of " if threads else ""
            parts.append(f"{used}{machine['cores']} cores of {machine['name']} ({widest})")
        parts.append(f"torch {made['versions']['torch']}")
        groups.setdefault(", ".join(parts), []).append(f"`{name}`")
    return " ".join(f"{', '.join(names)}: {text}." for text, names in groups.items())


def with_tables(text: str, made: Mapping[str, str]) -> str:
    """Return a page's text with new tables between `<!-- table NAME -->` and `<!-- end -->`."""

    def new(match: re.Match[str]) -> str:
        return f"<!-- table {match[1]} -->\n{made[match[1]]}\n<!-- end -->"

    return re.sub(r"<!-- table (\w+) -->\n.*?\n?<!-- end -->", new, text, flags=re.DOTALL)


# Command line ---------------------------------------------------------------------------------------------------------

console = Console(width=max(200, Console().width))


def reproduce(name: str, more: Sequence[str], to: Path, outputs: Path, run: Command = run_process) -> bool:
    """Make the results of a row; write them if there are none, else return whether they agree with the old ones."""
    results = {"row": name, "command": shlex.join(["scripts/reproduce", name, *more])}
    results |= measure(read_rows()[name], more, outputs, run)
    if not to.exists():
        to.parent.mkdir(parents=True, exist_ok=True)
        write_json(to, results)
        console.print(f"{to}: the first results of this row; scripts/reproduce --table writes them into the README")
        return True
    new = outputs / "reproduce" / to.name
    new.parent.mkdir(parents=True, exist_ok=True)
    write_json(new, results)
    agree = compare(json.loads(to.read_text(encoding="utf-8")), results)
    console.print(f"old: {to}\nnew: {new}\n{'The numbers agree.' if agree else 'The numbers do not agree.'}")
    return agree


def main(argv: Sequence[str] | None = None) -> int:
    rows = read_rows()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("row", nargs="?", choices=rows)
    parser.add_argument("overrides", nargs="*", help="of the row's training")
    parser.add_argument("--list", action="store_true", help="show the rows")
    parser.add_argument("--table", action="store_true", help="write the README's tables")
    parser.add_argument("--to", type=Path, help="file of the results; the default is outputs/results/ROW.json")
    parser.add_argument("--outputs", type=Path, default=ROOT / "outputs", help="folder of the runs")
    args = parser.parse_intermixed_args(argv)
    if args.table:
        made = tables()
        for page in PAGES:
            page.write_text(with_tables(page.read_text(encoding="utf-8"), made), encoding="utf-8")
    elif args.row is None:
        for name, row in rows.items():
            state = "has results" if (RESULTS / f"{name}.json").exists() else "no results yet"
            print(f"{name:18} {state:15} {shlex.join(row.train or row.script or row.package or [])}")
    else:
        to = args.to or RESULTS / f"{args.row}.json"
        try:
            return 0 if reproduce(args.row, args.overrides, to.resolve(), args.outputs.resolve()) else 1
        except UserError as error:
            print(f"reproduce: {error}", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
