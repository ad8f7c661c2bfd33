"""Where tests find the files they share."""
import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def golden() -> Path:
    "Inputs and outputs of the reference implementations."
    return Path(os.environ.get("OMNIJET_TEST_GOLDEN") or Path(__file__).parent / "golden")


@pytest.fixture(scope="session")
def jetclass() -> Path:
    "A folder with real JetClass jets (HToBB_1500.root)."
    folder = os.environ.get("OMNIJET_TEST_JETCLASS")
    if not folder:
        pytest.skip("OMNIJET_TEST_JETCLASS is not set: no real JetClass jets here")
    return Path(folder)
