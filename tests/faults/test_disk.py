"""A disk that is full, and one that is read-only: one clear line, the earlier file intact, and the same call completes once there is room."""
import json
import subprocess

import pytest
import tasks
import torch
from faults import ENV, OMNIJET, disk, fill, finished, plain, read_only, tables, weights

from omnijet.data import to_columns, write_tokens
from omnijet.files import OmnijetError, write_columns
from omnijet.gpt import GenerativeModel
from omnijet.observables import save_figure
from omnijet.statistics import number, record


@pytest.fixture(scope="module")
def columns():
    return to_columns(tasks.jets(60))


def figure(folder, words):
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(2, 2))
    ax.set_title(words)
    save_figure(fig, folder, "fig")
    plt.close(fig)


def model(folder, seed):
    torch.manual_seed(seed)
    GenerativeModel(64, width=16, blocks=1, heads=2).save_pretrained(folder)


WRITERS = {  # name: write(folder, columns, 0 or 1: an earlier or a later version)
    "parquet": lambda folder, columns, i: write_columns(columns[i:], folder / "x.parquet"),
    "root": lambda folder, columns, i: write_columns(columns[i:], folder / "x.root"),
    "tokens": lambda folder, columns, i: write_tokens([[i, 1, 2]] * 50_000, folder / "x.parquet", id=range(50_000)),
    "results": lambda folder, columns, i: record(folder, "03_gpt", [number("median_mass", i, size=k) for k in range(300)]),
    "figure": lambda folder, columns, i: figure(folder, "ab"[i]),
    "model": lambda folder, columns, i: model(folder / "model", i),
}


@pytest.mark.parametrize("name", WRITERS)
def test_files(tmp_path, columns, name):
    with disk(tmp_path / "disk") as folder:
        WRITERS[name](folder, columns, 0)
        before = {path: (folder / path).read_bytes() for path in finished(folder)}
        for refuse, allow in ((lambda: fill(folder, 200), lambda: (folder / ".filler").unlink()), (lambda: read_only(folder), lambda: read_only(folder, False))):
            refuse()
            with pytest.raises(OmnijetError, match="cannot be written .(No space left on device|Read-only file system)") as error:
                WRITERS[name](folder, columns, 1)
            assert "\n" not in str(error.value)
            del error
            assert {path: (folder / path).read_bytes() for path in finished(folder)} == before
            assert [path.name for path in folder.rglob(".*") if path.name != ".filler"] == []  # nothing half-written remains
            allow()
        WRITERS[name](folder, columns, 1)
        assert {path: (folder / path).read_bytes() for path in finished(folder)} != before


def trained(folder):
    return weights(folder), plain(json.loads((folder / "training" / "history.json").read_text()))


@pytest.mark.parametrize("task", [tasks.vqvae, tasks.backbone])
def test_training(tmp_path, task):
    task(tmp_path / "whole", 3)
    size = (tmp_path / "whole" / "training" / "last.ckpt").stat().st_size + (tmp_path / "whole" / "training" / "best.safetensors").stat().st_size
    with disk(tmp_path / "disk") as folder:
        fill(folder, int(1.5 * size) + 8000)  # room for one checkpoint, not for two
        with pytest.raises(OmnijetError, match="training/.*cannot be written .No space left"):
            task(folder / "model", 3)
        assert (folder / "model" / "training" / "last.ckpt").exists() and not list(folder.glob("model/*.safetensors"))
        (folder / ".filler").unlink()
        assert 1 <= len(torch.load(folder / "model" / "training" / "last.ckpt", weights_only=True)["omnijet"]["history"]) < 3
        task(folder / "model", 3)
        assert trained(folder / "model") == trained(tmp_path / "whole")


def test_generation(tmp_path):
    tasks.generation(tmp_path / "whole", 60)
    size = sum(path.stat().st_size for path in (tmp_path / "whole").iterdir())
    with disk(tmp_path / "disk") as folder:
        fill(folder, size // 2)
        with pytest.raises(OmnijetError, match="generated_0000.*cannot be written"):
            tasks.generation(folder / "out", 60)
        assert 1 <= len(finished(folder / "out")) < 6
        (folder / ".filler").unlink()
        tasks.generation(folder / "out", 60)
        assert tables(folder / "out") == tables(tmp_path / "whole")


def test_simulation(tmp_path):
    with disk(tmp_path / "disk") as folder:
        fill(folder, 12_000)
        with pytest.raises(OmnijetError, match="cannot be written .No space left"):
            tasks.simulation(folder / "out", 2)
        (folder / ".filler").unlink()
        tasks.simulation(folder / "out", 2)
        tasks.simulation(tmp_path / "whole", 2)
        assert tables(folder / "out") == tables(tmp_path / "whole")


def test_transfer_sweep(tmp_path):
    with disk(tmp_path / "disk") as folder:
        tasks.tokens_of_a_run(folder / "run")
        fill(folder, 4096)
        with pytest.raises(OmnijetError, match="No space left"):
            tasks.transfer(folder / "out", seeds=[1])
        (folder / ".filler").unlink()
        assert len(tasks.transfer(folder / "out", seeds=[1])) == 4


def test_run(tmp_path):
    "The command itself: status 1 and one line."
    with disk(tmp_path / "disk") as folder:
        words = [*OMNIJET, "run", "--runs", str(folder / "runs"), "--only", "00c"]
        for refuse, allow in ((lambda: fill(folder), lambda: (folder / ".filler").unlink()), (lambda: read_only(folder), lambda: read_only(folder, False))):
            refuse()
            done = subprocess.run(words, capture_output=True, text=True, env=ENV, cwd=tmp_path)
            assert done.returncode == 1 and str(folder) in done.stderr and done.stderr.count("\n") == 1, done.stderr
            allow()
