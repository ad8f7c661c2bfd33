"""The training loop: what a folder of checkpoints is good for, and what it refuses."""
import zlib
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from omnijet.files import OmnijetError
from omnijet.data import Ragged
from omnijet.training import Steps, TrainingConfig, train
from omnijet.gpt import GenerativeModel
from omnijet.models import Linear


class Mean(torch.nn.Module):
    "Learns the mean of its input."
    def __init__(self, width=1):
        super().__init__()
        self.value = torch.nn.Parameter(torch.zeros(width))

    def loss(self, batch):
        return {"loss": ((batch["x"] - self.value)[batch["mask"]] ** 2).mean()}


def sample(n=64, seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 9, n)
    return Ragged(rng.normal(3, 0.1, (lengths.sum(), 1)).astype("f4"), np.concatenate([[0], np.cumsum(lengths)]))


CONFIG = TrainingConfig(epochs=3, batch_size=16, lr=0.1)


def fit(out, model=None, data=None, config=CONFIG, **words):
    return train(model or Mean(), data or sample(), sample(seed=1), config, out=out, progress=False, **words)


def test_the_same_training_is_not_repeated(tmp_path):
    first = fit(tmp_path)
    stamp = (tmp_path / "last.ckpt").stat().st_mtime_ns
    model = Mean()
    assert fit(tmp_path, model) == first and (tmp_path / "last.ckpt").stat().st_mtime_ns == stamp
    assert float(model.value.detach()) > 0.5                                     # the trained weights, not the initial ones


@pytest.mark.parametrize("other", [dict(model=Mean(2)), dict(data=sample(65)), dict(config=TrainingConfig(epochs=3, batch_size=16, lr=0.2))])
def test_another_training_starts_again(tmp_path, other):
    first = fit(tmp_path)
    with pytest.warns(UserWarning, match="starting again"):
        assert fit(tmp_path, **other) != first


def test_a_longer_training_is_another(tmp_path):
    fit(tmp_path)
    with pytest.warns(UserWarning, match="starting again"):
        assert len(fit(tmp_path, config=TrainingConfig(epochs=5, batch_size=16, lr=0.1))) == 5


def test_a_file_that_is_no_checkpoint(tmp_path):
    (tmp_path / "last.ckpt").write_bytes(b"no checkpoint")
    with pytest.raises(OmnijetError, match="last.ckpt is not a checkpoint"):
        fit(tmp_path)


def test_early_stopping_keeps_the_best_weights():
    model = Mean()
    data, far = sample(), sample(seed=1)
    far.content[:] = 1.0                                                         # validation is best on the way to 3
    history = train(model, data, far, TrainingConfig(epochs=200, batch_size=16, lr=0.1, patience=3), progress=False)
    scores = [row["val_loss"] for row in history]
    assert len(history) == int(np.argmin(scores)) + 1 + 3 < 200
    assert abs((float(model.value.detach()) - 1) ** 2 - min(scores)) < 1e-4


def test_empty_samples_and_unknown_settings():
    for data, val in ((sample()[:0], None), (sample(), sample()[:0])):
        with pytest.raises(OmnijetError, match="empty"):
            train(Mean(), data, val, CONFIG, progress=False)
    for wrong in (dict(schedule="zigzag"), dict(optimizer="lbfgs")):
        with pytest.raises(OmnijetError, match="expected"):
            train(Mean(), sample(), None, TrainingConfig(epochs=1, **wrong), progress=False)
    with pytest.raises(OmnijetError, match="batch_size"):
        Steps([1, 2], 0)


def test_processes_share_each_step():
    lengths = sample(103).lengths
    whole = list(Steps(lengths, 10, seed=3))
    for world in (2, 3):
        parts = [list(Steps(lengths, 10, seed=3, rank=rank, world=world)) for rank in range(world)]
        assert {len(part) for part in parts} == {len(whole)} == {10}
        for step, *shares in zip(whole, *parts):
            assert sorted(np.concatenate(shares)) == sorted(step) and min(map(len, shares)) >= len(step) // world
    assert sorted(np.concatenate(whole)) == list(range(103))
    with pytest.raises(OmnijetError, match="for 4 processes"):
        Steps([5, 6, 7], 10, world=4)


@pytest.mark.parametrize("shape", [(5,), (0, 5), (3, 5), (700, 96), (16, 33, 96), (2, 0, 96)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_linear_is_that_of_torch(shape, bias, dtype):
    torch.manual_seed(1)
    layer, x = Linear(shape[-1], 64, bias=bias).to(dtype), torch.randn(shape, dtype=dtype).requires_grad_()
    results = []
    for forward in (layer, lambda x: torch.nn.functional.linear(x, layer.weight, layer.bias)):
        y = forward(x)
        results.append([y, *torch.autograd.grad(y.square().sum(), (x, *layer.parameters()))])
    for found, expected in zip(*results):
        assert found.dtype == expected.dtype and found.shape == expected.shape
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5 * float(expected.detach().abs().max()) if expected.numel() else 0)


def test_linear_under_autocast_and_of_another_width():
    layer, x = Linear(96, 64), torch.randn(500, 96)
    with torch.autocast("cpu", torch.bfloat16): assert layer(x).dtype == torch.bfloat16
    for wrong in (torch.randn(500, 95), torch.randn(500, 96).double()):
        with pytest.raises(RuntimeError): layer(wrong)


def test_data_too_large_for_memory_are_streamed_or_thinned(tmp_path, monkeypatch):
    from omnijet import training
    from omnijet.data import JetStream, sample_jets, to_columns
    from omnijet.files import write_columns

    for name in ("ZJetsToNuNu", "TTBar"):
        jets = sample_jets(name, 40)
        for i in range(4):
            write_columns(to_columns(jets[10 * i : 10 * i + 10]), tmp_path / f"{name}_{i:03}.parquet")
    assert isinstance(training.training_data(tmp_path), Ragged)
    monkeypatch.setattr(training, "IN_MEMORY", 30)
    assert isinstance(training.training_data(tmp_path), JetStream) and training.training_data(tmp_path).sequences == 80
    assert training.training_data(tmp_path, max_jets=45).sequences == 50
    some = training.training_data(tmp_path, max_jets=12, seed=3)                  # one file of each process is read
    assert len(some) == 12 and set(some.extras["label"]) == {0, 8}
    with pytest.raises(OmnijetError, match="no file of HToBB|no jets of HToBB"):
        training.training_data(tmp_path, "HToBB")
    history = train(Mean3(), training.training_data(tmp_path), training.training_data(tmp_path), CONFIG, out=tmp_path / "out", progress=False)
    assert len(history) == 3 and history[-1]["step"] == 3 * 5


class Mean3(Mean):
    "Of jets."
    def __init__(self):
        super().__init__(3)


def test_killed_inside_an_epoch_a_stream_goes_on_at_the_next_step(tmp_path):
    from omnijet.data import JetStream, sample_jets, to_columns
    from omnijet.files import write_columns

    write_columns(to_columns(sample_jets("TTBar", 200)), tmp_path / "TTBar_000.parquet")
    config = TrainingConfig(epochs=2, batch_size=10, lr=0.1, checkpoint_minutes=1e-9)   # after each step

    class Mortal(Mean3):
        left, steps = 10**9, 0

        def loss(self, batch):
            if self.training:
                Mortal.left, self.steps = Mortal.left - 1, self.steps + 1
                if Mortal.left < 0:
                    raise KeyboardInterrupt
            return super().loss({**batch, "x": batch["x"] + torch.randn_like(batch["x"])})   # the random stream goes on, too

    def run(out):
        model = Mortal()
        stream = JetStream(tmp_path / "TTBar_000.parquet", segment=60, chunk=20)
        return model, train(model, stream, stream, config, out=out, progress=False)

    whole, history = run(tmp_path / "whole")
    Mortal.left = 13
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed")
    Mortal.left = 10**9
    again, resumed = run(tmp_path / "killed")
    assert again.steps == whole.steps - 13 and torch.equal(again.value, whole.value)
    assert [{k: v for k, v in row.items() if k != "seconds"} for row in resumed] == [{k: v for k, v in row.items() if k != "seconds"} for row in history]


@dataclass
class Numbers:
    "Batches out of nowhere, as `train` takes them."
    batch_size: int = 8
    seed: int = 1
    rank: int = 0
    world: int = 1
    sequences = 48

    def __post_init__(self):
        self.epoch, self.batch = 0, 0

    def __len__(self):
        return self.sequences // self.batch_size // self.world

    def __iter__(self):
        while self.batch < len(self):
            rng = np.random.default_rng((self.seed, self.epoch, self.batch, self.rank))
            self.batch += 1
            x = rng.normal(3, 0.1, (self.batch_size, 4, 1)).astype("f4")
            yield {"x": torch.from_numpy(x), "mask": torch.ones(x.shape[:2], dtype=torch.bool)}
        self.epoch, self.batch = self.epoch + 1, 0

    def checksum(self, crc=0):
        return zlib.crc32(b"numbers", crc)


def test_anything_that_gives_batches_is_learnt_from_and_gone_on_with(tmp_path):
    class Mortal(Mean):
        left = 10**9

        def loss(self, batch):
            Mortal.left -= self.training
            if Mortal.left < 0:
                raise KeyboardInterrupt
            return super().loss(batch)

    whole, again = Mortal(), Mortal()
    train(whole, Numbers(), Numbers(seed=2), CONFIG, tmp_path / "whole", progress=False)
    assert float(whole.value.detach()) > 0.5                                     # nine steps of at most 0.1
    Mortal.left = 4                                                              # of three steps an epoch: in the second one
    with pytest.raises(KeyboardInterrupt):
        train(again, Numbers(), Numbers(seed=2), CONFIG, tmp_path / "killed", progress=False)
    Mortal.left = 10**9
    again = Mortal()
    train(again, Numbers(), Numbers(seed=2), CONFIG, tmp_path / "killed", progress=False)
    assert torch.equal(again.value, whole.value)


def test_muon_has_its_own_learning_rate():
    model = GenerativeModel(codebook_size=5, width=8, blocks=1, heads=2)
    adam, muon = TrainingConfig(lr=1e-3, optimizer="muon", muon_lr=0.05).make_optimizers(model)
    (few,), (matrices,) = adam.param_groups, muon.param_groups
    assert (few["peak"], matrices["peak"]) == (1e-3, 0.05)
    assert {p.ndim for p in matrices["params"]} == {2}
    assert any(p is model.backbone.embedding.weight for p in few["params"])
