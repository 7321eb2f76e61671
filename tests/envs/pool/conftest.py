"""What the tests of the pool leave behind."""

import psutil
import pytest


@pytest.fixture(scope="module")
def nothing_left_behind():
    """The tests of a file leave no process and no open file, once the shared pool is closed."""
    this = psutil.Process()
    children = set(this.children())
    num_files = this.num_fds()
    yield
    assert not set(this.children()) - children
    assert this.num_fds() <= num_files
