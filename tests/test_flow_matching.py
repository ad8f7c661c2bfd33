"""The generative model without tokens."""
import awkward as ak
import numpy as np
import pytest
import torch

from omnijet.files import OmnijetError
from omnijet.data import Ragged
from omnijet.flow_matching import FlowMatching, kinematics, turned
from omnijet.observables import jet_eta, jet_mass, jet_pt
from omnijet.training import TrainingConfig, train


EVERY = [{}, {"told": True, "ranks": True, "sums": True}]  # the paper's model, and all of its options


@pytest.mark.parametrize("options", EVERY)
def test_flow_matching_learns_a_narrow_distribution(options):
    "All jets have 6 constituents at the same place and p_T: so have the drawn ones, nearly."
    rng = np.random.default_rng(1)
    content = np.stack([np.exp(rng.normal(3, 0.1, 3000)), rng.normal(0.3, 0.02, 3000), rng.normal(-0.2, 0.05, 3000)], 1).astype(np.float32)
    data = Ragged(content, np.arange(0, 3001, 6))
    torch.manual_seed(1)
    flow = FlowMatching(width=32, layers=1, **options).learn_scale(data)
    train(flow, data, config=TrainingConfig(epochs=12, batch_size=50, lr=3e-3), progress=False)
    jets = flow.generate(200, steps=20)
    assert ak.all(ak.num(jets) == 6)
    drawn = np.stack([ak.to_numpy(ak.flatten(np.log(jets.pt))), ak.to_numpy(ak.flatten(jets.eta_rel)), ak.to_numpy(ak.flatten(jets.phi_rel))], 1)
    assert np.allclose(drawn.mean(0), [3, 0.3, -0.2], atol=[0.04, 0.01, 0.02]) and np.allclose(drawn.std(0), [0.1, 0.02, 0.05], rtol=0.3)


def test_jets_are_what_they_were_told():
    "Two prongs at any distance, any p_T: p_T and mass of drawn jets follow what was announced."
    rng, n = np.random.default_rng(2), 3000
    half, pt = rng.uniform(0.05, 0.35, n), rng.uniform(300, 700, n)
    eta, phi = np.stack([half, -half], 1) + rng.normal(0, 0.01, (n, 2)), rng.normal(0, 0.01, (n, 2))
    content = np.stack([np.stack([0.5 * pt, 0.5 * pt], 1) * rng.uniform(0.8, 1.2, (n, 2)), eta, phi], 2).reshape(-1, 3).astype(np.float32)
    data = Ragged(content, 2 * np.arange(n + 1))
    torch.manual_seed(1)
    flow = FlowMatching(width=48, layers=2, told=True, ranks=True, sums=True).learn_scale(data)
    train(flow, data, config=TrainingConfig(epochs=15, batch_size=50, lr=3e-3, schedule="one-cycle", optimizer="adam"), progress=False)
    jets, told = flow.generate(400, seed=3, steps=20), flow.draw_conditions(400, seed=3)[1].exp().numpy()
    assert np.corrcoef(jet_pt(jets), told[:, 0])[0, 1] > 0.9 and np.corrcoef(jet_mass(jets), told[:, 1])[0, 1] > 0.9
    assert np.median(np.abs(jet_pt(jets) / told[:, 0] - 1)) < 0.08
    assert np.allclose(jet_eta(jets), np.log(told[:, 2]), atol=1e-5)


def test_jets_turned_to_an_axis_keep_p_T_and_mass():
    lengths = np.array([5, 40, 1, 9])
    rng, jet = np.random.default_rng(4), torch.from_numpy(np.repeat(np.arange(4), lengths))
    x = torch.from_numpy(np.stack([rng.exponential(20, 55), *rng.normal(0, 0.2, (2, 55))], 1))
    axis = torch.tensor([[0.0, 0.0], [0.01, -0.02], [0.0, 0.1], [-0.02, 0.0]], dtype=torch.float64)
    before, after = kinematics(x, jet, 4), kinematics(turned(x, jet, axis), jet, 4)
    assert torch.allclose(after[:, 2:], axis, atol=1e-7) and torch.allclose(after[:, :2], before[:, :2], atol=1e-5)


def test_what_is_told_is_like_the_training_jets():
    rng = np.random.default_rng(3)
    lengths = rng.integers(2, 30, 2000)
    content = np.stack([rng.exponential(20, lengths.sum()) + 1, *rng.normal(0, 0.2, (2, lengths.sum())).clip(-0.7, 0.7)], 1).astype(np.float32)
    data = Ragged(content, np.append(0, np.cumsum(lengths)))
    flow, real = FlowMatching(width=8, layers=1, told=True).learn_scale(data), data.to_constituents()
    counts, told = flow.draw_conditions(5000, seed=1)
    for i, of in enumerate((jet_pt(real), jet_mass(real))):
        drawn = told[:, i].exp().numpy()
        assert np.allclose(np.quantile(drawn, [0.1, 0.5, 0.9]), np.quantile(of, [0.1, 0.5, 0.9]), rtol=0.1)
        assert of.min() * 0.99 < drawn.min() and drawn.max() < of.max() * 1.01
    assert np.corrcoef(counts, told[:, 0])[0, 1] > 0.5  # one jet's, not mixed


@pytest.mark.parametrize("options", EVERY)
def test_the_order_of_constituents_and_the_other_jets_do_not_matter(options):
    torch.manual_seed(1)
    flow = FlowMatching(width=8, layers=2, **options).eval()
    x, jet, n = torch.rand(7, 3), torch.tensor([0, 0, 0, 0, 1, 1, 1]), torch.tensor([4, 3])
    t, of = torch.rand(2), torch.rand(2, 4)
    with torch.inference_mode():
        v, mixed = flow(x, t, jet, n, of), torch.tensor([2, 0, 3, 1, 5, 4, 6])
        assert torch.allclose(flow(x[mixed], t, jet, n, of), v[mixed], atol=1e-6)
        assert torch.allclose(flow(x[4:], t[1:], jet[4:] - 1, n[1:], of[1:]), v[4:], atol=1e-6)


def small(lengths=(3, 1, 5), **options):
    content = np.random.default_rng(1).uniform(0.1, 0.5, (sum(lengths), 3)).astype(np.float32)
    torch.manual_seed(1)
    data = Ragged(content, np.append(0, np.cumsum(lengths)))
    return FlowMatching(width=8, layers=1, width_global=2, **options).learn_scale(data), data


@pytest.mark.parametrize("wrong", [dict(n=-1), dict(n=1.5), dict(n=True), dict(n="many"), dict(seed=-1), dict(seed=2**64), dict(steps=0), dict(steps=1e9), dict(steps=None)])
def test_odd_options_name_themselves(wrong):
    with pytest.raises(OmnijetError, match=f"{next(iter(wrong))} is"):
        small()[0].generate(**{"n": 2, "steps": 2, **wrong})


@pytest.mark.parametrize("wrong", [dict(width=0), dict(layers=1.5), dict(width_global=True), dict(width="wide"), dict(told=2), dict(sums="perhaps")])
def test_odd_sizes_name_themselves(wrong):
    with pytest.raises(OmnijetError, match=f"{next(iter(wrong))} is"):
        FlowMatching(**wrong)


def test_numbers_of_numpy_and_no_jets():
    flow, _ = small()
    given = flow.generate(np.int64(3), seed=np.array(2), steps=np.uint8(2))
    assert ak.array_equal(given, flow.generate(3, seed=2, steps=2)) and len(flow.generate(3, seed=2**63 - 1, steps=1)) == 3
    none = flow.generate(0)
    assert len(none) == 0 and none.fields == given.fields and none.ndim == 2


def test_a_flow_that_has_seen_nothing():
    with pytest.raises(OmnijetError, match="learn_scale"):
        FlowMatching(width=8, layers=1).generate(2)
    with pytest.raises(OmnijetError, match="constituents"):
        FlowMatching(width=8, layers=1).learn_scale(Ragged(np.zeros((0, 3), np.float32), [0, 0]))


@pytest.mark.parametrize("options", EVERY)
def test_jets_without_constituents(options):
    flow, data = small(lengths=(3, 0, 5), **options)
    train(flow, data, config=TrainingConfig(epochs=2, batch_size=2), progress=False)
    jets = flow.generate(20, steps=2)
    assert set(ak.num(jets).to_list()) == {0, 3, 5} and np.isfinite(ak.to_numpy(ak.flatten(jets.pt))).all()
