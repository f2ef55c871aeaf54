"""A study in a real SQLite file."""

import optuna
import pytest
from optuna.trial import TrialState

from ddpm.errors import UserError


def test_the_order_of_overrides_makes_no_other_study(search):
    name = search("seed=1", "model.channels=16,32", "optimizer.warmup_steps=5")[0].name
    same = [
        "optimizer.warmup_steps=5", "seed=1", "trainer.devices=2", "trainer=cpu", "hydra.sweeper.n_trials=3",
        "hydra/sweeper/sampler=random", "hydra/sweeper/pruner=none",
    ]  # fmt: skip
    assert search("model.channels=16,32", "seed=1", "optimizer.warmup_steps=5", *same)[0].name == name
    for other in (
        "seed=2",
        "model.channels=16,32,48",
        "trainer.max_steps=9",
        "hydra.sweeper.metric=val/loss",
        "experiment=quickstart",
    ):
        assert search("seed=1", "model.channels=16,32", "optimizer.warmup_steps=5", other)[0].name != name


def points(study, space, number):
    """Ask for the next points and complete their trials; a larger learning rate gives a better value."""
    found = []
    for _ in range(number):
        trial = study.ask(space)
        found.append(trial.params)
        study.tell(trial.number, TrialState.COMPLETE, -trial.params["optimizer.lr"])
    return found


def test_a_study_continues_as_if_it_had_not_stopped(search, tmp_path):
    early = "hydra.sweeper.sampler.n_startup_trials=2"  # so most points depend on earlier results
    whole = points(*search(early), 7)
    assert len({point["optimizer.lr"] for point in whole}) == 7
    (tmp_path / "outputs" / "train" / "default" / "search.db").unlink()
    assert points(*search(early), 1) + points(*search(early), 4) + points(*search(early), 2) == whole
    (tmp_path / "outputs" / "train" / "default" / "search.db").unlink()
    assert points(*search("hydra.sweeper.sampler.seed=1000"), 1) != whole[:1]


@pytest.mark.parametrize("options", [["random"], ["gp", "hydra.sweeper.sampler.n_startup_trials=2"]])
def test_other_samplers_choose_points_of_the_space(search, options):
    found = points(*search(f"hydra/sweeper/sampler={options[0]}", *options[1:]), 4)
    assert len({point["optimizer.lr"] for point in found}) >= 3  # gp may choose one end of the interval again
    assert all(1e-4 <= point["optimizer.lr"] <= 1e-2 for point in found)


def test_reading_a_study_does_not_create_it(search, tmp_path):
    study, space = search()
    assert study.trials() == []
    assert not (tmp_path / "outputs" / "train" / "default" / "search.db").exists()
    other, _ = search("seed=1")  # of the same database
    points(study, space, 1)
    assert other.trials() == []
    assert optuna.study.get_all_study_names(study.url) == [study.name]


def test_a_database_of_the_users_own(search, tmp_path):
    study, space = search(f"hydra.sweeper.storage='sqlite:///{tmp_path}/mine.db'")
    points(study, space, 1)
    assert (tmp_path / "mine.db").is_file()
    secret, _ = search("hydra.sweeper.storage='mysql://me:secret@host/db'")
    assert secret.shown_url == "mysql://me:***@host/db"


def test_a_step_is_reported_once_and_the_pruner_answers(search):
    study, space = search("hydra.sweeper.pruner.n_startup_trials=2")
    for value in (1.0, 2.0):
        number = study.ask(space).number
        assert [study.report(number, step, value) for step in (10, 20)] == [False, False]
        study.tell(number, TrialState.COMPLETE, value)

    hopeful, hopeless = study.ask(space).number, study.ask(space).number
    assert not study.report(hopeful, 10, 1.4)
    assert not study.report(hopeful, 10, 9.0)  # the trial continues from a checkpoint before step 10
    assert study.report(hopeless, 20, 1.6)
    study.tell(hopeless, TrialState.PRUNED)
    _, _, third, fourth = study.trials()
    assert third.intermediate_values == {10: 1.4}
    assert (fourth.state, fourth.value) == (TrialState.PRUNED, 1.6)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("hydra.sweeper.pruner.n_startup_trials=-1", "cannot be negative"),
        ("hydra.sweeper.storage=nonsense", "the database of the study, hydra.sweeper.storage=nonsense"),
        ("hydra.sweeper.storage=sqlite:////nowhere/at/all.db", "the database of the study"),
    ],
)
def test_mistakes_are_refused(search, override, message):
    with pytest.raises(UserError, match=message):
        search(override)[0].open()
