from collections.abc import Iterator

import jaxtyping
import pytest
import torch
from hypothesis import settings

# Few and always the same examples: a red run means the code changed, not the draw.
settings.register_profile("deterministic", derandomize=True, database=None, max_examples=20, deadline=None)
settings.load_profile("deterministic")

torch.set_num_threads(1)


@pytest.fixture
def as_users_run_it() -> Iterator[None]:
    """Without the run-time checks of annotations, which would refuse bad arguments before our own messages."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
