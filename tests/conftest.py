"""What several test files share."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets; tests that need it skip where SEGKIT_DATA does not say where it is."""
    folder = os.environ.get("SEGKIT_DATA")
    if not folder:
        pytest.skip("SEGKIT_DATA is not set: no real data")
    return Path(folder)
