"""float32 against float64, bf16 against float32, and values that are not finite."""

import awkward as ak
import numpy as np
import pytest
import tasks
import torch
import torch.nn.functional as F

from omnijet.files import OmnijetError
from omnijet.data import Ragged
from omnijet.gpt import Backbone, GenerativeModel, next_token_loss
from omnijet.observables import observables
from omnijet.training import TrainingConfig, train
from omnijet.vqvae import VQVAE, NormFormer, nearest


# float32 against float64

@pytest.mark.parametrize("codes", [512, 8192])
def test_quantizer(codes):
    "The code chosen in float32 is as near as the nearest in float64, to 1e-6 of the distances' scale."
    rng = np.random.default_rng(codes)
    z, codebook = rng.normal(size=(2000, 4)), rng.normal(size=(codes, 4))
    chosen = nearest(torch.from_numpy(z).float(), torch.from_numpy(codebook).float()).numpy()
    distances = (z**2).sum(1)[:, None] - 2 * z @ codebook.T + (codebook**2).sum(1)   # (N, K)
    excess = distances[np.arange(len(z)), chosen] - distances.min(1)
    assert excess.max() < 1e-6 * (codebook**2).sum(1).max()
    assert (chosen == distances.argmin(1)).mean() > 0.999


def worst(module, *inputs):
    "The largest difference between float32 and float64, in units of the values' spread."
    with torch.no_grad():
        single = module.float()(*inputs)
        double = module.double()(*(x.double() if x.is_floating_point() else x for x in inputs))
    return float((single.double() - double).abs().max() / double.std())


def test_attention():
    torch.manual_seed(1)
    mask = torch.arange(40) < torch.tensor([[40], [25], [1]])
    assert worst(NormFormer(3, 4, 64, 4, 8).eval(), torch.randn(3, 40, 3), mask) < 2e-5
    assert worst(Backbone(514, 64, 3, 8).eval(), torch.randint(0, 514, (3, 40))) < 2e-5


def test_cross_entropy():
    torch.manual_seed(1)
    x, targets, head = 5 * torch.randn(3000, 32), torch.randint(0, 514, (3000,)), torch.nn.Linear(32, 514)
    x.requires_grad_()
    loss = next_token_loss(x, head, targets)
    loss.backward()
    exact = x.detach().double().requires_grad_()
    double = F.cross_entropy(F.linear(exact, head.weight.double(), head.bias.double()), targets)
    double.backward()
    assert abs(loss.item() - double.item()) < 1e-6 * double.item()
    assert (x.grad.double() - exact.grad).abs().max() < 1e-5 * exact.grad.abs().max()


def test_observables():
    "Of constituents in float32 and of the same in float64, before rounding: 1e-5 of each value's scale."
    rng = np.random.default_rng(1)
    counts = rng.integers(5, 80, 300)
    total = counts.sum()
    exact = {"pt": rng.exponential(20, total) + 0.5, "eta_rel": rng.normal(0, 0.2, total), "phi_rel": rng.normal(0, 0.2, total)}

    def of(dtype):
        return observables(ak.zip({"constituents": ak.unflatten(ak.zip({k: v.astype(dtype) for k, v in exact.items()}), counts)}, depth_limit=1))

    single, double = of(np.float32), of(np.float64)
    for name in double:
        good = np.isfinite(double[name])
        assert good.sum() > 290
        scale = np.abs(double[name][good]).max()
        share = (np.abs(single[name][good] - double[name][good]) < 1e-5 * scale).mean()
        assert share >= 0.99 if name.startswith("tau") else share == 1, name  # a tie of two axes may fall either way


# bf16

@pytest.mark.parametrize("make, data", [(lambda: VQVAE(16, width=16, blocks=1, heads=2), lambda: Ragged.from_jets(tasks.jets())),
                                        (lambda: GenerativeModel(64, width=32, blocks=1, heads=2), tasks.some_tokens)], ids=["vqvae", "backbone"])
def test_bf16_training(make, data):
    "The validation loss after five epochs of bf16-mixed is that of float32 to 5 %."
    last, sample = {}, data()
    for precision in ("32-true", "bf16-mixed"):
        torch.manual_seed(1)
        history = train(make(), sample[::2], sample[1::2], TrainingConfig(5, 40, 3e-3, precision=precision), progress=False)
        last[precision], first = history[-1]["val_loss"], history[0]["val_loss"]
    print(last)
    assert last["32-true"] < first
    assert abs(last["bf16-mixed"] / last["32-true"] - 1) < 0.05


# not finite

class Mean(torch.nn.Module):
    "Learns the mean of its input; from epoch to epoch the same, until memory fails: then one jet of a batch is not a number."
    def __init__(self):
        super().__init__()
        self.value, self.steps, self.fails_at, self.where = torch.nn.Parameter(torch.zeros(1)), 0, None, None

    def loss(self, batch):
        if self.training:
            self.steps += 1
            if self.steps == self.fails_at:
                batch["x"][2, 0, 0], self.where = torch.nan, int(batch["id"][2])
        return {"loss": ((batch["x"] - self.value)[batch["mask"]] ** 2).mean()}


def sample(n=80, seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 9, n)
    return Ragged(rng.normal(3, 0.1, (lengths.sum(), 1)).astype("f4"), np.concatenate([[0], np.cumsum(lengths)]), {"id": rng.integers(0, 2**63, n).astype(np.uint64) * 2})


def test_a_jet_that_is_no_number_stops_the_training(tmp_path):
    config = TrainingConfig(epochs=4, batch_size=16, lr=0.1)
    whole, model = Mean(), Mean()
    train(whole, sample(), sample(seed=1), config, tmp_path / "whole", progress=False)
    model.fails_at = 13                                                             # in the third epoch of five steps
    with pytest.raises(OmnijetError, match="training loss of Mean is nan at step 12 .epoch 2.; jets with id") as error:
        train(model, sample(), sample(seed=1), config, tmp_path / "broken", progress=False)
    assert f"jets with id {model.where % 2**64} hold values that are not finite" in str(error.value)
    kept = torch.load(tmp_path / "broken" / "last.ckpt", weights_only=True)
    assert len(kept["omnijet"]["history"]) == 2 and all(torch.isfinite(v).all() for v in kept["model"].values())
    again = Mean()
    train(again, sample(), sample(seed=1), config, tmp_path / "broken", progress=False)
    assert torch.equal(again.value, whole.value)                                    # goes on from the good checkpoint, to the same weights
    assert (tmp_path / "broken" / "best.safetensors").read_bytes() == (tmp_path / "whole" / "best.safetensors").read_bytes()


def test_broken_jets_are_named_from_the_start(tmp_path):
    broken = sample()
    broken.content[broken.offsets[7]] = np.inf
    with pytest.raises(OmnijetError, match=f"jets with id {broken.extras['id'][7]} hold values"):
        train(Mean(), broken, None, TrainingConfig(1, 16), tmp_path, progress=False)
    with pytest.raises(OmnijetError, match=f"validation loss .* jets with id {broken.extras['id'][7]} hold values"):
        train(Mean(), sample(seed=1), broken, TrainingConfig(1, 16), tmp_path, progress=False)
    assert not (tmp_path / "last.ckpt").exists()


def test_a_gradient_that_is_not_finite(tmp_path):
    "A finite loss with an infinite gradient in the last step of an epoch: no checkpoint is written of it."
    class Root(Mean):
        def loss(self, batch):
            return {"loss": (self.value - self.value.detach()).abs().sqrt().sum() + super().loss(batch)["loss"]}

    with pytest.raises(OmnijetError, match="not finite"):
        train(Root(), sample(), None, TrainingConfig(1, 80), tmp_path, progress=False)
    assert not (tmp_path / "last.ckpt").exists()
