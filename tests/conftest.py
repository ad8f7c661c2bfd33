"""Where tests find the files they share."""
import os
from pathlib import Path

import pytest


LONG = ("test_reproducible", "test_chapters", "test_distributed", "test_run", "test_vqvae", "test_transfer", "test_simulation", "test_data")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Of several workers (`omnijet test`) each takes a file with its fixtures, the long ones first, so that none works alone at
    the end; what shares nothing with its neighbours goes to whoever has time."""
    for item in items:
        if item.path.stem not in ("test_chapters", "test_distributed"):
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
    place = {name: i for i, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONG)))


@pytest.fixture(scope="session")
def golden() -> Path:
    "Inputs and outputs of the reference implementations."
    return Path(os.environ.get("OMNIJET_TEST_GOLDEN") or Path(__file__).parent / "golden")


def folder_of(variable: str, what: str) -> Path:
    "The folder that an environment variable names; the test is skipped where it names none."
    if not os.environ.get(variable):
        pytest.skip(f"{variable} is not set: no {what} here")
    return Path(os.environ[variable])


@pytest.fixture(scope="session")
def jetclass() -> Path:
    "A folder with real JetClass jets (HToBB_1500.root)."
    return folder_of("OMNIJET_TEST_JETCLASS", "real JetClass jets")


@pytest.fixture(scope="session")
def public() -> Path:
    "A folder with public jets: top_tagging_1000.h5, QG_jets_1000.npz."
    return folder_of("OMNIJET_TEST_PUBLIC", "public jets")


@pytest.fixture(scope="session")
def columns():
    "JetClass columns of 20 jets of each class."
    from omnijet.data import sample_jets, to_columns

    return to_columns(sample_jets(max_jets=20))


@pytest.fixture(scope="session")
def shards(tmp_path_factory, columns):
    "A folder of JetClass's own layout, Parquet and ROOT: 10 classes × 2 files × 60 jets."
    from omnijet.data import CLASSES, LABELS
    from omnijet.files import write_columns

    folder = tmp_path_factory.mktemp("JetClass") / "val_5M"
    for label, process in zip(LABELS, CLASSES):
        of_class = columns[columns[label]]
        sixty = of_class[[index % len(of_class) for index in range(60)]]
        write_columns(sixty, folder / f"{process}_120.parquet")
        write_columns(sixty, folder / f"{process}_121.root")
    return folder


@pytest.fixture(scope="session")
def parquet(shards):
    "600 jets of ten files."
    return str(shards / "*.parquet")
