"""SIGKILL at random moments: the same call again finishes with the same jets, files and weights as one that nobody disturbed."""
import json
import multiprocessing
import os
import random
import time
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TQDM_DISABLE", "1")
import tasks  # noqa: E402
from faults import finished, plain, tables, weights  # noqa: E402

PROCESSES = multiprocessing.get_context("forkserver")  # it imports torch once: kills fall into the work, not into imports
PROCESSES.set_forkserver_preload(["tasks"])


def stamp(folder):
    "Names and times of the files under a folder, unfinished ones among them."
    found = []
    for path in sorted(Path(folder).rglob("*")):
        try:
            found.append((str(path), path.stat().st_mtime_ns))
        except FileNotFoundError:  # renamed meanwhile
            pass
    return found


def start(task, folder, wait=True):
    "The process at work, once it has written something."
    before = stamp(folder)
    process = PROCESSES.Process(target=task, args=(folder,))
    process.start()
    while wait and process.is_alive() and stamp(folder) == before:
        time.sleep(0.005)
    return process


def to_the_end(task, folder):
    "Seconds from the first file to the end."
    process, begin = start(task, folder), time.perf_counter()
    process.join()
    assert process.exitcode == 0
    return time.perf_counter() - begin


def survives(task, tmp_path, kills, outcome, seed):
    "Kill the task `kills` times, in one folder or, if it ends before, in several; each outcome must be that of a task left alone."
    rng, hits = random.Random(seed), 0
    seconds = to_the_end(task, tmp_path / "whole")
    expected = outcome(tmp_path / "whole")
    for attempt in range(20):
        folder = tmp_path / f"killed_{attempt}"
        while hits < kills:
            process = start(task, folder, wait=rng.random() < 0.8)
            time.sleep(rng.uniform(0, 1.5 * seconds / kills))
            if process.is_alive():
                process.kill()
                hits += 1
            process.join()
            assert process.exitcode in (0, -9)
            if process.exitcode == 0:
                break
        to_the_end(task, folder)
        assert outcome(folder) == expected
        if hits == kills:
            print(f"{hits} kills in {attempt + 1} folders; alone it takes {seconds:.1f} s")
            return
    pytest.fail(f"only {hits} of {kills} kills hit a process alive")


def trained(folder):
    "Best and final weights, the history but for its times."
    return weights(folder), plain(json.loads((folder / "training" / "history.json").read_text())), plain(json.loads((folder / "config.json").read_text()))


def test_simulation(tmp_path):
    survives(tasks.simulation, tmp_path, 4, tables, seed=1)


def test_vqvae_training(tmp_path):
    survives(tasks.vqvae, tmp_path, 6, trained, seed=2)


def test_pre_training(tmp_path):
    survives(tasks.backbone, tmp_path, 6, trained, seed=3)


def test_generation(tmp_path):
    survives(tasks.generation, tmp_path, 5, tables, seed=4)


def test_transfer_sweep(tmp_path):
    tasks.tokens_of_a_run(tmp_path / "run")

    def outcome(folder):
        return weights(folder), [plain(json.loads((folder / path).read_text())) for path in finished(folder) if path.name == "result.json"]

    survives(tasks.transfer, tmp_path, 4, outcome, seed=5)
