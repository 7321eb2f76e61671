import jax
import pytest


@pytest.fixture
def fast_compile():
    """Compile twice faster, run slower and round a little differently; the models are tiny."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
