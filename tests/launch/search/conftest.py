import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser

from ddpm.config import conf_dir
from ddpm.launch.search.space import Space
from ddpm.launch.search.study import Study

SPACE = ["optimizer.lr=tag(log,interval(1e-4,1e-2))", "schedule=linear,cosine"]


@pytest.fixture
def search(tmp_path, monkeypatch):
    """`search(*overrides) -> (study, space)`, in the test's own folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs" / "train" / "default").mkdir(parents=True)

    def search(*overrides):
        parsed = OverridesParser.create().parse_overrides([*SPACE, *overrides])
        fixed = [o.input_line for o in parsed if not o.is_sweep_override()]
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            config = compose("train", ["hydra/sweeper=optuna", *fixed], return_hydra_config=True)
        space = Space.of([o for o in parsed if not o.key_or_group.startswith("hydra")])
        return Study.of(space, config), space

    return search
