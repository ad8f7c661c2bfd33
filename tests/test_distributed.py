"""Two real processes train together, on gloo; leftovers of other launchers mean nothing to one that trains alone."""
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

SCRIPT = """
import json, sys, torch
from pathlib import Path
import numpy as np
from omnijet.data import JetStream, Ragged
from omnijet.training import TrainingConfig, train

torch.set_num_threads(1)
folder, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
rng = np.random.default_rng(0)
lengths = rng.integers(1, 9, 103)
content = rng.normal(3, 1, (lengths.sum(), 1)).astype("f4")
data = Ragged(content, np.concatenate([[0], np.cumsum(lengths)]), {"id": np.arange(103)})
if len(sys.argv) > 3:
    data = JetStream(sys.argv[3], segment=100, chunk=10)


class Mean(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.value, self.seen = torch.nn.Parameter(torch.zeros(1)), []

    def loss(self, batch):
        if self.training:
            self.seen += batch["id"].tolist()
        error = (batch["x"][..., :1] - self.value)[batch["mask"]]
        return {"loss": (error ** 2).mean(), "weight": batch["mask"].sum()}


model = Mean()
config = TrainingConfig(epochs=2, batch_size=8, lr=0.05, **settings)
history = train(model, data, data, config, out=folder / "out", progress=False)
rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
losses = [(row["train_loss"], row["val_loss"]) for row in history]
(folder / f"rank{rank}.json").write_text(json.dumps({"seen": model.seen, "value": model.value.item(), "losses": losses}))
if torch.distributed.is_initialized():
    torch.distributed.destroy_process_group()
"""
TWO = {"devices": 2, "strategy": "ddp"}
SLURM = {"SLURM_NTASKS": "2", "SLURM_JOB_NAME": "train", "SLURM_NODEID": "0", "SLURM_NODELIST": "localhost", "SLURM_JOB_ID": "12345",
         "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "1"}
LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", *SLURM)


def start(folder, settings, command=(sys.executable,), env=(), data=()):
    (folder / "script.py").write_text(SCRIPT)
    clean = {k: v for k, v in os.environ.items() if k not in LAUNCHERS} | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen([*command, folder / "script.py", folder, json.dumps(settings), *data], env=clean | dict(env), cwd=folder,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(folder, *processes):
    for process in processes:
        out, _ = process.communicate(timeout=300)
        assert process.returncode == 0, out[-3000:]
    return [json.loads(path.read_text()) for path in sorted(folder.glob("rank*.json"))]


def together(ranks, n=103):
    "Two ranks: the same weights and losses, as many steps each, every jet once an epoch."
    assert len(ranks) == 2 and ranks[0]["value"] == ranks[1]["value"] != 0 and ranks[0]["losses"] == ranks[1]["losses"]
    seen = Counter(jet for rank in ranks for jet in rank["seen"])
    assert len(seen) == n and set(seen.values()) == {2}


def test_a_script_that_asks_for_two_devices(tmp_path):
    together(finish(tmp_path, start(tmp_path, TWO)))


def test_torchrun(tmp_path):
    torchrun = (str(Path(sys.executable).parent / "torchrun"), "--nproc-per-node", "2")
    together(finish(tmp_path, start(tmp_path, TWO, torchrun)))


def test_slurm(tmp_path):
    ranks = [{**SLURM, "SLURM_PROCID": rank, "SLURM_LOCALID": rank} for rank in ("0", "1")]
    together(finish(tmp_path, *(start(tmp_path, TWO, env=env) for env in ranks)))


def test_two_ranks_read_streams(tmp_path):
    from omnijet.data import sample_jets, to_columns
    from omnijet.files import write_columns

    jets = sample_jets("TTBar", 103)
    for i, part in enumerate((jets[:60], jets[60:])):
        write_columns(to_columns(part), tmp_path / "jets" / f"TTBar_{i:03}.parquet")
    together(finish(tmp_path, start(tmp_path, TWO, data=[tmp_path / "jets"])))


@pytest.mark.parametrize("env", [{"WORLD_SIZE": "4", "RANK": "0"}, {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "3", "TORCHELASTIC_RUN_ID": "1"},
                                 {**SLURM, "SLURM_PROCID": "1", "SLURM_LOCALID": "1"}])
def test_one_process_alone_sees_every_jet(tmp_path, env):
    (rank,) = finish(tmp_path, start(tmp_path, {}, env=env))
    assert Counter(rank["seen"]) == {jet: 2 for jet in range(103)}


MODEL = """
import json, sys, torch
from pathlib import Path
import numpy as np
from omnijet.data import Ragged
from omnijet.gpt import GenerativeModel
from omnijet.training import TrainingConfig, train

torch.set_num_threads(1)
folder, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
rng = np.random.default_rng(0)
lengths = rng.integers(1, 30, 103)
data = Ragged(rng.integers(0, 50, lengths.sum()), np.concatenate([[0], np.cumsum(lengths)]))
torch.manual_seed(1)
model = GenerativeModel(50, width=16, blocks=2, heads=2)
config = TrainingConfig(epochs=2, batch_size=20, lr=0.003, optimizer=sys.argv[3], **settings)
history = train(model, data, data, config, progress=False)
rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
weights = torch.cat([p.detach().flatten() for p in model.parameters()]).tolist()
losses = [[row["step"], row["train_loss"], row["val_loss"]] for row in history]
(folder / f"rank{rank}.json").write_text(json.dumps({"weights": weights, "losses": losses}))
if torch.distributed.is_initialized():
    torch.distributed.destroy_process_group()
"""


@pytest.mark.parametrize("optimizer, precision, tolerance", [("adam", "32-true", 1e-5), ("adam", "64-true", 3e-7), ("muon", "64-true", 3e-7)])
def test_two_ranks_train_as_one_process_does(tmp_path, monkeypatch, optimizer, precision, tolerance):
    monkeypatch.setattr(sys.modules[__name__], "SCRIPT", MODEL)
    found = {}
    for name, settings in ("one", {}), ("two", TWO):
        (tmp_path / name).mkdir()
        found[name] = finish(tmp_path / name, start(tmp_path / name, settings | {"precision": precision}, data=[optimizer]))
    one, two = found["one"][0], found["two"]
    assert one["losses"][-1][0] == 10 and one["losses"][-1][1] < one["losses"][0][1]
    for rank in two:
        assert all(abs(a - b) < tolerance * abs(b) for row, other in zip(rank["losses"], one["losses"]) for a, b in zip(row, other))
