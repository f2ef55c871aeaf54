from collections.abc import Iterator

import jaxtyping
import pytest
import torch
from hypothesis import settings

# The same few examples in every run: a failure then comes from the code, not from the draw.
settings.register_profile("deterministic", derandomize=True, database=None, max_examples=20, deadline=None)
settings.load_profile("deterministic")

torch.set_num_threads(1)


@pytest.fixture
def without_type_checks() -> Iterator[None]:
    """Switches off the run-time checks of annotations, which the tests add, so that our own messages appear."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
