"""Small pieces of each kind of long work, as a user would start them; the same call again goes on where the first was."""
from concurrent.futures import Executor, Future
from pathlib import Path

import lightning  # noqa: F401  # once, before processes are forked
import numpy as np
import torch

from omnijet.data import Ragged, sample_jets, write_tokens
from omnijet.generation import generate_files
from omnijet.gpt import GenerativeModel
from omnijet.simulation import simulate_files
from omnijet.training import TrainingConfig, train
from omnijet.transfer import sweep
from omnijet.vqvae import BinnedTokenizer, VQVAE

torch.set_num_threads(1)
TOKENIZER = BinnedTokenizer(bins=(4, 4, 4))


def simulation(folder, n=3):
    return simulate_files(folder, n=n, classes=["HToBB", "ZJetsToNuNu"], shard_size=1, workers=1, seed=3, progress=False)


def fit(model, data, folder, epochs):
    n = len(data) * 4 // 5
    history = train(model, data[:n], data[n:], TrainingConfig(epochs, 40, 3e-3, schedule="cosine"), folder / "training", progress=False)
    model.save_pretrained(folder)
    return history


def jets(n=200):
    return sample_jets(["ZJetsToNuNu", "TTBar"], n)


def vqvae(folder, epochs=12):
    torch.manual_seed(1)
    model = VQVAE(16, width=8, blocks=1, heads=2, replace_freq=2)  # codes are replaced at random: the random stream must go on as well
    return fit(model, Ragged.from_jets(jets()[::3]), Path(folder), epochs)


def some_tokens(n=200):
    sample = jets(n)
    tokens = TOKENIZER.encode(sample)
    return Ragged(np.asarray([token for jet in tokens for token in jet]), np.concatenate([[0], np.cumsum([len(jet) for jet in tokens])]),
                  {"label": np.asarray(sample.label), "id": np.asarray(sample.id)})


def backbone(folder, epochs=12):
    torch.manual_seed(1)
    return fit(GenerativeModel(64, width=16, blocks=1, heads=2), some_tokens(), Path(folder), epochs)


def generation(folder, n=240):
    torch.manual_seed(1)
    return generate_files(GenerativeModel(64, width=16, blocks=1, heads=2).eval(), folder, n, TOKENIZER, where="cpu", shard_size=10, batch_size=10, progress=False)


def tokens_of_a_run(run):
    sample = jets(110)
    tokens = TOKENIZER.encode(sample)
    for split, part in {"train": slice(0, 50), "val": slice(50, 80), "test": slice(80, 110)}.items():
        for label, name in ((0, "ZJetsToNuNu"), (8, "TTBar")):
            chosen = np.flatnonzero(sample.label == label)[part]
            write_tokens(tokens[chosen], Path(run, "tokens", split, f"{name}.parquet"), label=sample.label[chosen], id=sample.id[chosen])
    torch.manual_seed(1)
    GenerativeModel(64, width=16, blocks=1, heads=2).save_pretrained(Path(run, "backbone"))


class Here(Executor):
    "Trainings in this process, which is the one that is killed."
    def submit(self, function, *words):
        future = Future()
        future.set_result(function(*words))
        return future


def transfer(folder, seeds=(1, 2, 3)):
    run = Path(folder).parent / "run"
    return sweep(run / "backbone", run, folder, sizes=[20, 60], strategies=["finetune", "scratch"], seeds=list(seeds), executor=Here(), epochs=4, batch_size=20, progress=False)
