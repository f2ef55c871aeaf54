import csv
import io
from pathlib import Path

import pytest
from PIL import Image

from ddpm.runs.collect import Curve, RunRecord, Samples
from ddpm.runs.compare import (
    compare,
    draw_comparison,
    html_page,
    markdown_page,
    runs_table,
    settings_table,
    write_runs_csv,
    write_settings_csv,
)

ROOT = Path("outputs/train/x")


def record(name, bpd=None, state="finished", step=100, **settings):
    metrics = {} if bpd is None else {"val/bpd": bpd}
    return RunRecord(ROOT / name, state, step, 60.0, None, settings, metrics)


@pytest.fixture
def compared():
    """Two settings with three seeds each. One seed of the second setting is still running."""
    return compare(
        [
            record("b2", 4.0, lr=0.01, seed=2, state="running", step=50),
            record("b0", 2.0, lr=0.01, seed=0),
            record("b1", 2.4, lr=0.01, seed=1, step=120),
            record("a2", 1.2, lr=0.001, seed=2),
            record("a10", 1.4, lr=0.001, seed=10),
            record("a0", 1.0, lr=0.001, seed=0),
        ]
    )


def test_runs_are_sorted_by_settings_and_seeds(compared):
    assert [compared.name(run) for run in compared.runs] == ["a0", "a2", "a10", "b0", "b1", "b2"]
    assert (compared.root, compared.varying, compared.metrics) == (ROOT, ["lr"], ["val/bpd"])


def test_means_and_standard_errors_of_the_finished_seeds(compared):
    first, second = compared.groups
    # standard deviations: 0.2 for three values, 0.4/√2 for two
    assert first.estimate("val/bpd") == pytest.approx((1.2, 0.2 / 3**0.5, 3))
    assert second.estimate("val/bpd") == pytest.approx((2.2, 0.2, 2))
    assert second.estimate("val/loss") is None
    assert settings_table(compared) == (
        ["lr", "seeds", "step", "val/bpd"],
        [["0.001", "3", "100", "1.20 ± 0.12"], ["0.01", "2 of 3", "100–120", "2.20 ± 0.20"]],
    )
    assert compared.best is first
    assert compared.best_run is None  # none has a checkpoint


def test_a_diverged_seed_shows_in_the_number_of_values():
    compared = compare([record("0", 1.0, seed=0), record("1", 2.0, seed=1), record("2", None, seed=2)])
    assert settings_table(compared).rows == [["3", "100", "1.50 ± 0.50 (n=2)"]]


def test_a_copied_run_counts_once():
    runs = [record("a/x", 1.0, seed=0), record("b/x", 1.5, seed=0, step=70), record("a/y", 2.0, seed=1)]
    (point,) = compare(runs).groups
    assert point.estimate("val/bpd") == pytest.approx((1.5, 0.5, 2))
    assert len(compare(runs).runs) == 3


def test_one_run_has_no_standard_error():
    compared = compare([record("only", 1.23456, seed=0)])
    assert settings_table(compared).rows == [["1", "100", "1.235"]]
    assert runs_table(compared) == (
        ["seed", "state", "step", "time", "val/bpd", "run", "best checkpoint"],
        [["0", "finished", "100", "0:01:00", "1.235", "only", "–"]],
    )
    assert (compared.best, compared.quality) == (None, "val/bpd")


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([1234.0, 1250.0], "1242.0 ± 8.0"),
        ([1.0, 1.00001], "1.00001 ± 0.00001"),
        ([0.0, 0.0], "0 ± 0"),
        ([10_000.0, 20_000.0], "15000 ± 5000"),
        ([-1.0, 1.0], "0.0 ± 1.0"),
    ],
)
def test_digits_follow_the_standard_error(values, shown):
    compared = compare([record(str(seed), value, seed=seed) for seed, value in enumerate(values)])
    assert settings_table(compared).rows[0][-1] == shown


def test_runs_without_a_config_have_a_row_but_no_group(compared):
    odd = RunRecord(ROOT / "odd", "unreadable", error="config.yaml cannot be read")
    both = compare([odd, *compared.runs])
    assert len(both.groups) == 2
    assert runs_table(both).rows[-1] == ["?", "?", "unreadable", "–", "–", "–", "odd", "–"]
    alone = compare([odd])
    assert (alone.groups, alone.quality, alone.best_run) == ([], None, None)
    assert draw_comparison(alone, {ROOT / "odd": {"val/bpd": Curve([1], [1.0])}}) is None
    assert "unreadable" in html_page("t", alone, {}, {})


def test_csv_has_all_digits(compared, tmp_path):
    write_settings_csv(tmp_path / "settings.csv", compared)
    rows = read_csv(tmp_path / "settings.csv")
    assert list(rows[0]) == ["lr", "finished", "seeds", "val/bpd", "val/bpd_se", "val/bpd_n"]
    assert [(row["lr"], row["finished"], row["seeds"]) for row in rows] == [("0.001", "3", "3"), ("0.01", "2", "3")]
    assert float(rows[0]["val/bpd_se"]) == pytest.approx(0.2 / 3**0.5, rel=1e-14)

    write_runs_csv(tmp_path / "runs.csv", compared)
    rows = read_csv(tmp_path / "runs.csv")
    assert [row["run"] for row in rows] == [str(ROOT / name) for name in ("a0", "a2", "a10", "b0", "b1", "b2")]
    assert rows[-1].items() >= {
        "lr": "0.01", "seed": "2", "state": "running", "step": "50", "seconds": "60.0", "val/bpd": "4.0"
    }.items()  # fmt: skip


NASTY = '<script>alert(1)</script> & | [red]\n"x"'


def test_names_and_errors_are_escaped():
    run = RunRecord(ROOT / "<b>&", "failed", 3, None, NASTY, {"seed": 0, "k": NASTY}, {})
    compared = compare([run, record("plain", seed=0, k="k")])
    page = html_page(NASTY, compared, {}, {run.directory: [Samples(3, b"")]})
    assert "<script" not in page
    assert "<b>" not in page
    # The title twice, a setting in two tables and a caption, and the error.
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt; &amp; | [red]\n&#34;x&#34;") == 6
    markdown = markdown_page(NASTY, compared)
    assert "<" not in markdown
    table = [line for line in markdown.splitlines() if line.startswith("|")]
    columns = [line.count("|") - line.count("\\|") - 1 for line in table]
    assert columns == [3] * 4 + [7] * 4  # two tables, each a header, a line and two rows


def test_spreadsheets_run_no_cell_and_markdown_shows_names_as_they_are(tmp_path):
    names = ["=cmd()", "+1", "-x", "@a", "a`b", "[x](y)", "_a_b_", "*", "a\udcff"]
    compared = compare([record(name, 1.0, k=name, seed=0) for name in names])
    write_runs_csv(tmp_path / "runs.csv", compared)
    cells = {row["k"] for row in read_csv(tmp_path / "runs.csv")}
    assert cells == {"'=cmd()", "'+1", "'-x", "'@a", "a`b", "[x](y)", "_a_b_", "*", "a\\udcff"}
    page = markdown_page("t", compared)
    assert all(word in page for word in ("a\\`b", "\\[x\\](y)", "\\_a_b\\_", "| \\* |"))
    odd = compare([RunRecord(Path("a`b/c"), "finished", settings={"seed": 0})])
    assert "in `` a`b ``," in markdown_page("t", odd)


def test_metrics_of_callbacks_have_columns():
    run = RunRecord(ROOT / "a", "finished", 7, 1.0, None, {"seed": 0}, {"fid": 3.0, "val/bpd": 2.0, "lr-AdamW": 1.0})
    assert settings_table(compare([run])) == (["seeds", "step", "val/bpd", "fid"], [["1", "7", "2", "3"]])


def test_the_figure_draws_any_comparison(compared):
    curves = {run.directory: {"val/bpd": Curve([1, 2], [float("nan"), 2.0])} for run in compared.runs[:2]}
    assert draw_comparison(compared, {}, {}).startswith(b"\x89PNG")
    assert draw_comparison(compared, curves, dark=True).startswith(b"\x89PNG")
    formulas = [record(word, 1.0, **{"k$": word, "seed": 0}) for word in ("$\\frac$ $x_^$", "$")]
    samples = {ROOT / "$": [Samples(3, png(7))]}
    assert draw_comparison(compare(formulas), {}, samples).startswith(b"\x89PNG")
    many = [record(f"{i}", 1.0 + i, word=f"w{i}", **{f"x{j}": i * j for j in range(20)}, seed=0) for i in range(30)]
    assert draw_comparison(compare(many), {}).startswith(b"\x89PNG")
    assert draw_comparison(compare([record("a", seed=0)]), {}) is None


def png(shade):
    file = io.BytesIO()
    Image.new("L", (8, 8), shade).save(file, "PNG")
    return file.getvalue()


def read_csv(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
