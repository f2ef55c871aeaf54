import csv
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev

import pytest
from hand_made import make_run
from omegaconf import OmegaConf
from PIL import Image

from ddpm.commands import report
from ddpm.errors import UserError
from ddpm.runs.collect import read_curves
from ddpm.runs.compare.figure import CURVES

VALUES = {("linear", 0): 2.0, ("linear", 1): 2.5, ("cosine", 0): 1.0, ("cosine", 1): 1.25}
TRAIN = (
    "train data=mnist_mini model=unet_tiny model.channels=8 schedule.num_steps=50 debug=fast trainer=cpu "
    "trainer.max_steps=2 schedule=cosine"
)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """A folder with four runs: two schedules, two seeds each."""
    folder = tmp_path_factory.mktemp("sweep")
    for (schedule, seed), value in VALUES.items():
        make_run(
            folder / "outputs" / "train" / "default" / f"schedule-{schedule}_seed-{seed}",
            f"schedule={schedule}",
            f"seed={seed}",
            metrics={"val/bpd": value, "val/loss": value / 3, "train/loss": value / 7, "images/s": 100 * value},
            curves={"val/bpd": [(50, 3.0), (100, value)], "val/loss": [(50, 0.5), (100, value / 3)]},
            shade=200,
            seconds=60,
        )
    return folder


@pytest.fixture(scope="module")
def reported(sweep):
    """The output of `ddpm report` for the sweep, and the folder of the report."""
    command = [sys.executable, "-m", "ddpm", "report", "runs=outputs/train"]
    done = subprocess.run(command, cwd=sweep, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout, sweep / "outputs" / "report" / "train"


def read_csv(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_means_and_standard_errors_over_the_seeds(sweep, reported):
    _, folder = reported
    rows = {row["schedule"]: row for row in read_csv(folder / "settings.csv")}
    assert rows.keys() == {"linear", "cosine"}
    for schedule, row in rows.items():
        numbers = [json.loads(path.read_text()) for path in sweep.glob(f"outputs/train/*/*{schedule}*/metrics.json")]
        for metric in ("val/bpd", "val/loss", "train/loss", "images/s"):
            values = [number[metric] for number in numbers]
            assert len(values) == int(row[f"{metric}_n"]) == 2
            assert float(row[metric]) == pytest.approx(mean(values))
            assert float(row[f"{metric}_se"]) == pytest.approx(stdev(values) / math.sqrt(2))


def test_each_run_is_a_row(sweep, reported):
    _, folder = reported
    rows = read_csv(folder / "runs.csv")
    assert [(row["schedule"], row["seed"]) for row in rows] == [
        (schedule, seed) for schedule in ("cosine", "linear") for seed in "01"
    ]
    for row in rows:
        assert (row["state"], row["step"], row["error"]) == ("finished", "100", "")
        assert f"schedule-{row['schedule']}" in row["run"]
        assert row["checkpoint"] == f"{row['run']}/checkpoints/best.ckpt"
        assert (sweep / row["checkpoint"]).is_file()
        assert float(row["seconds"]) > 0


def test_the_output_has_both_tables_and_the_next_commands(reported):
    screen, _ = reported
    assert re.search(r"│ cosine +│ +2 │ +100 │ +\d.* ± ", screen)
    assert "4 runs (4 finished) in outputs/train/default" in screen
    assert len(re.findall(r"^ +\d  outputs/train/default/.*/checkpoints/best\.ckpt$", screen, re.MULTILINE)) == 4
    assert "Results in outputs/report/train\n" in screen
    best = re.search(r"ddpm evaluate ckpt=(\S+)", screen)
    assert best is not None
    assert "schedule-cosine" in best[1]  # the lowest bound


def test_the_page_needs_no_other_file(sweep, reported):
    _, folder = reported
    page = (folder / "report.html").read_text(encoding="utf-8")
    sources = re.findall(r'(?:src|srcset|href|url)[=(]"?([^")]{,40})', page)
    assert len(sources) == 2 + 4  # the figure, light and dark, and one picture per run
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "http" not in re.sub(r"base64,[^\"]*", "", page)
    assert page.count('<span class="state finished">') == 4


def test_the_figure_is_a_picture(reported):
    _, folder = reported
    with Image.open(folder / "report.png") as picture:
        assert picture.width == 1500
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 100


def test_markdown_has_the_same_tables(reported):
    _, folder = reported
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert "| schedule | seeds | step | val/bpd | val/loss | train/loss | images/s |\n| --- | ---: |" in text
    assert len(re.findall(r"^\| (?:cosine|linear) \| [01] \| finished \| 100 \|", text, re.MULTILINE)) == 4


def test_one_trained_run(ddpm_here, tmp_path):
    done = ddpm_here(*TRAIN.split())
    assert done.returncode == 0, done.stderr
    done = ddpm_here("report", "runs=outputs/train")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "outputs" / "report" / "train"
    (row,) = read_csv(folder / "runs.csv")
    assert (row["state"], row["step"], row["error"]) == ("finished", "2", "")
    assert float(row["seconds"]) > 0
    assert float(row["val/bpd"]) > 0
    assert (tmp_path / row["checkpoint"]).is_file()
    assert read_csv(folder / "settings.csv")[0]["val/bpd_se"] == ""
    curves = read_curves(tmp_path / row["run"], CURVES)
    assert [curves[metric].steps for metric in CURVES] == [[1], [1]]  # one validation, after the second batch
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2 + 1


def test_a_list_of_runs(ddpm_here, sweep, tmp_path):
    runs = sorted(sweep.glob("outputs/train/default/*seed-0"))
    done = ddpm_here("report", f"runs=[{','.join(map(str, runs))}]", f"paths.outputs={tmp_path}/elsewhere")
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.glob(f"elsewhere/report/{runs[0].name}_and_1_more.*")
    assert [row["schedule"] for row in read_csv(folder / "settings.csv")] == ["cosine", "linear"]


def test_a_sweep_in_progress(ddpm_here, tmp_path):
    """One run is finished, one trains, one has just started, one failed, and one is damaged."""
    sweep = tmp_path / "outputs" / "train" / "a sweep"
    numbers = {"val/bpd": 2.0, "val/loss": 0.1}
    curves = {"val/bpd": [(50, 3.0), (100, 2.0)]}
    make_run(sweep / "0", "schedule=linear", metrics=numbers, curves=curves, shade=0, seconds=60)
    make_run(sweep / "1", "schedule=linear", "seed=1", state="running", step=50, metrics=numbers, curves=curves)
    make_run(sweep / "2", "schedule=cosine", state="running", step=0)
    make_run(sweep / "3", "schedule=cosine", "seed=1", state="failed", error="OutOfMemoryError: <20 & [red]>\nmore")
    damaged = make_run(sweep / "4", "schedule=sigmoid", metrics=numbers)
    for name in ("config.yaml", "metrics.json", "status.json"):
        (damaged / name).write_text('{"')
    make_run(sweep / "0.before-20260102-030405", "schedule=linear", metrics={"val/bpd": 99})

    done = ddpm_here("report", "runs='outputs/train/a sweep'")
    assert done.returncode == 0, done.stderr
    assert "5 runs (2 running, 1 failed, 1 finished, 1 unreadable)" in done.stdout
    assert "     OutOfMemoryError: <20 & [red]>\n     more\n" in done.stdout
    folder = tmp_path / "outputs" / "report" / "a sweep"
    assert [(row["run"][-1], row["state"], row["error"]) for row in read_csv(folder / "runs.csv")] == [
        ("2", "running", ""),
        ("3", "failed", "OutOfMemoryError: <20 & [red]>\nmore"),
        ("0", "finished", ""),
        ("1", "running", ""),
        ("4", "unreadable", "\n".join(f"{n} cannot be read" for n in ("status.json", "metrics.json", "config.yaml"))),
    ]
    assert [(row["finished"], row["seeds"], row["val/bpd"]) for row in read_csv(folder / "settings.csv")] == [
        ("0", "2", ""),
        ("1", "2", "2.0"),
    ]
    assert "<pre>OutOfMemoryError: &lt;20 &amp; [red]&gt;\nmore</pre>" in (folder / "report.html").read_text()
    assert (folder / "report.png").is_file()


def test_a_mistake_writes_nothing(tmp_path, monkeypatch):
    make_run(tmp_path / "outputs" / "train" / "default" / "base")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    for runs, message in {
        "outputs/trian": r"there is no directory outputs/trian; nearby: outputs/train/default$",
        "empty": "there is no run in empty: no directory at any depth with status.json and config.yaml; nearby: ",
        "": "runs is empty",
    }.items():
        cfg = OmegaConf.create({"runs": runs, "paths": {"outputs": "outputs"}})
        with pytest.raises(UserError, match=message):
            report.run(cfg)
    with pytest.raises(UserError, match="runs is empty"):
        report.plan(OmegaConf.create({"runs": [], "paths": {"outputs": "outputs"}}))
    assert not (tmp_path / "outputs" / "report").exists()


def test_show_prints_existing_and_missing_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    there = make_run(Path("runs/there"), "seed=1", metrics={"val/bpd": 1.5})
    report.show([there, Path("runs/missing")])
    screen = capsys.readouterr().out
    assert "2 runs (1 finished, 1 absent) in runs\n" in screen
    assert f"  2  runs{os.sep}missing\n" in screen
    report.show([])
    assert capsys.readouterr().out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
