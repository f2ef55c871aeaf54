import csv
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev

import pytest
from hand_made import make_run
from PIL import Image

from ddpm.commands import display, report

SWEEP = (
    "train data=mnist_mini model=unet_tiny model.channels=8 schedule.num_steps=50 debug=fast trainer=cpu "
    "trainer.max_steps=2 schedule=linear,cosine seed=0,1 -m"
)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """A folder in which `ddpm` has trained four tiny runs: two schedules, two seeds."""
    folder = tmp_path_factory.mktemp("sweep")
    done = subprocess.run([sys.executable, "-m", "ddpm", *SWEEP.split()], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def reported(sweep):
    """What `ddpm report` printed of the sweep, and its folder."""
    command = [sys.executable, "-m", "ddpm", "report", "runs=outputs/train"]
    done = subprocess.run(command, cwd=sweep, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout, sweep / "outputs" / "report" / "train"


def read_csv(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_means_are_those_of_the_runs_own_numbers(sweep, reported):
    _, folder = reported
    points = {row["schedule"]: row for row in read_csv(folder / "settings.csv")}
    assert points.keys() == {"linear", "cosine"}
    for schedule, row in points.items():
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
        assert (row["state"], row["step"], row["error"]) == ("finished", "2", "")
        assert f"schedule-{row['schedule']}" in row["run"]
        assert row["checkpoint"] == f"{row['run']}/checkpoints/best.ckpt"
        assert (sweep / row["checkpoint"]).is_file()
        assert float(row["seconds"]) > 0


def test_the_screen_has_both_tables_and_what_comes_next(reported):
    screen, _ = reported
    assert re.search(r"│ cosine +│ +2 │ +2 │ +\d.* ± ", screen)
    assert "4 runs (4 finished) in outputs/train/default" in screen
    assert len(re.findall(r"^ +\d  outputs/train/default/.*/checkpoints/best\.ckpt$", screen, re.MULTILINE)) == 4
    assert "Results in outputs/report/train\n" in screen
    best = re.search(r"ddpm evaluate ckpt=(\S+)", screen)
    assert best is not None
    assert "schedule-cosine" in best[1]  # whose bound begins lower


def test_the_page_needs_nothing_beside_it(sweep, reported):
    _, folder = reported
    page = (folder / "report.html").read_text(encoding="utf-8")
    sources = re.findall(r'(?:src|srcset|href|url)[=(]"?([^")]{,40})', page)
    assert len(sources) == 2 + 4  # the plots, light and dark, and a picture of each run
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "http" not in re.sub(r"base64,[^\"]*", "", page)
    assert page.count('<span class="state finished">') == 4


def test_the_picture_is_one(reported):
    _, folder = reported
    with Image.open(folder / "report.png") as picture:
        assert picture.width == 1500
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 100


def test_markdown_has_the_same_tables(reported):
    _, folder = reported
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert "| schedule | seeds | step | val/bpd | val/loss | train/loss | images/s |\n| --- | ---: |" in text
    assert len(re.findall(r"^\| (?:cosine|linear) \| [01] \| finished \| 2 \|", text, re.MULTILINE)) == 4


def test_one_run_and_a_list_of_runs(ddpm_cli, sweep, tmp_path):
    shutil.copytree(sweep / "outputs", tmp_path / "moved")
    runs = sorted(tmp_path.glob("moved/train/default/*seed-0"))
    done = ddpm_cli("report", f"runs={runs[0].relative_to(tmp_path)}")
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.glob(f"outputs/report/{runs[0].name}.*")
    assert len(read_csv(folder / "runs.csv")) == 1
    assert read_csv(folder / "settings.csv")[0]["val/bpd_se"] == ""
    assert (folder / "report.png").is_file()

    done = ddpm_cli("report", f"runs=[{','.join(map(str, runs))}]", f"paths.outputs={tmp_path}/elsewhere")
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.glob(f"elsewhere/report/{runs[0].name}_and_1_more.*")
    assert [row["schedule"] for row in read_csv(folder / "settings.csv")] == ["cosine", "linear"]


def test_a_sweep_on_its_way(ddpm_cli, tmp_path):
    """A run that finished, one that trains, one that has just begun, a failed one and a damaged one."""
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

    done = ddpm_cli("report", "runs='outputs/train/a sweep'")
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


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ("outputs/trian", "there is no directory outputs/trian; nearby: outputs/train/default\n"),
        ("empty", "there is no run in empty: no directory at any depth with status.json and config.yaml; nearby: "),
        ("[]", "runs is empty"),
        ("''", "runs is empty"),
    ],
)
def test_a_mistake_is_told_and_leaves_no_trace(ddpm_cli, tmp_path, runs, message):
    make_run(tmp_path / "outputs" / "train" / "default" / "base")
    (tmp_path / "empty").mkdir()
    done = ddpm_cli("report", f"runs={runs}")
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "outputs" / "report").exists()


def test_show_prints_the_runs_that_are_there_and_those_that_are_not(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(display.console, "_file", None)  # what capsys puts in the place of stdout
    monkeypatch.chdir(tmp_path)
    there = make_run(Path("runs/there"), "seed=1", metrics={"val/bpd": 1.5})
    report.show([there, Path("runs/missing")])
    screen = capsys.readouterr().out
    assert "2 runs (1 finished, 1 absent) in runs\n" in screen
    assert f"  2  runs{os.sep}missing\n" in screen
    report.show([])
    assert capsys.readouterr().out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
