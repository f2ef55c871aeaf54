"""Each logger keeps the whole history of a run that is stopped and continued, alone or beside others."""

import csv
import signal
import struct
from pathlib import Path

import lightning as L
import pytest
import yaml
from killed_runs import TINY, run_directory, train
from small import fit, small_model
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from ddpm.config import conf_dir
from ddpm.runs import Run
from ddpm.training.callbacks import RunStatus
from ddpm.training.loggers import build_loggers


def nodes(run: Path, *names: str) -> dict:
    """The configs in `conf/logger` for a run."""
    texts = [(conf_dir() / "logger" / f"{name}.yaml").read_text() for name in names]
    return {
        name: node for text in texts for name, node in yaml.safe_load(text.replace("${paths.run}", str(run))).items()
    }


def rows_of(run: Path, name: str) -> list[tuple[int, float]]:
    """(step, value) in metrics.csv."""
    with (run / "metrics.csv").open(newline="") as file:
        return [(int(row["step"]), float(row[name])) for row in csv.DictReader(file) if row.get(name)]


def scalars_of(run: Path, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


class Mine(L.Callback):
    """A user's callback that logs in both ways."""

    def on_train_batch_end(self, trainer, pl_module, *args):
        pl_module.log("mine/step", float(trainer.global_step))
        pl_module.log_now({"mine/now": trainer.global_step})


@pytest.mark.filterwarnings("ignore:Experiment logs directory")  # of CSVLogger, for a run that continues
def test_a_killed_run_goes_on_in_both_files_and_a_callbacks_metrics_are_everywhere(tmp_path):
    with Run.open(tmp_path / "run") as run:
        for first, last in ((0, 5), (3, 7), (7, 8)):  # the first process was killed after the checkpoint of step 3
            for logger in build_loggers(nodes(run.directory, "csv", "tensorboard"), run, first):
                for step in range(first, last):
                    logger.log_metrics({"loss": step / 2}, step)
                logger.save()
        expected = [(step, step / 2) for step in range(8)]
        assert rows_of(run.directory, "loss") == scalars_of(run.directory, "loss") == expected

        loggers = build_loggers(nodes(run.directory, "csv", "tensorboard"), run, 8)
        fit(small_model(), 3, Mine(), RunStatus(5, run=run), logger=loggers, log_every_n_steps=1)
        for name in ("mine/step", "mine/now"):
            expected = [(0, 1.0), (1, 2.0), (2, 3.0)]
            assert rows_of(run.directory, name) == scalars_of(run.directory, name) == expected
            assert run.read_metrics()[name] == 3.0
        assert len(rows_of(run.directory, "loss")) == 8


def wandb_history(path: Path) -> list[dict[str, str]]:
    """The rows in a .wandb file: the format of LevelDB's log in blocks of 32 KiB, after 7 bytes."""
    protocol = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    data, at, record, rows = path.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        record = (record if kind in (3, 4) else b"") + data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            message = protocol.Record.FromString(record)
            if message.WhichOneof("record_type") == "history":
                rows.append({item.key or ".".join(item.nested_key): item.value_json for item in message.history.item})
    return rows


def killed_once(folder: Path, logger: str) -> Path:
    """A run of six steps in two processes; the first is killed in step 3, after the checkpoint of step 2."""
    for at, code in ((3, -signal.SIGKILL), (99, 0)):
        done = train(folder, *TINY, f"logger={logger}", at=at, env={"WANDB_SILENT": "true", "HOME": str(folder)})
        assert done.returncode == code, done.stderr
    return run_directory(folder)


@pytest.mark.slow
def test_the_history_in_weights_and_biases(tmp_path):
    pytest.importorskip("wandb")
    files = list(killed_once(tmp_path, "[tensorboard,wandb]").glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 2
    assert len({path.stem for path in files}) == 1  # one id
    rows = [row for path in files for row in wandb_history(path)]
    assert all(row["_step"] == row["trainer/global_step"] for row in rows)
    losses = {(int(row["_step"]), row["train/loss"]) for row in rows if "train/loss" in row}
    assert sorted(step for step, _ in losses) == list(range(6))  # one value of each step


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # of MLflow's own code
def test_the_history_in_mlflow(tmp_path):
    mlflow = pytest.importorskip("mlflow")
    run = killed_once(tmp_path, "[csv,mlflow]")
    client = mlflow.MlflowClient(f"sqlite:///{run}/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'ddpm'")
    (stored,) = client.search_runs([experiment.experiment_id])
    points = {(point.step, point.value) for point in client.get_metric_history(stored.info.run_id, "train/loss")}
    assert sorted(step for step, _ in points) == list(range(6))  # one value of each step
    assert dict(rows_of(run, "train/loss")) == pytest.approx(dict(points))
    assert {file.path for file in client.list_artifacts(stored.info.run_id)} == {"config.yaml", "images"}
