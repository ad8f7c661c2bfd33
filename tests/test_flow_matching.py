"""The generative model without tokens."""
import awkward as ak
import numpy as np
import pytest
import torch

from omnijet.files import OmnijetError
from omnijet.data import Ragged
from omnijet.flow_matching import FlowMatching
from omnijet.training import TrainingConfig, train


def test_flow_matching_learns_a_narrow_distribution():
    "All jets have 6 constituents at the same place and p_T: so have the drawn ones, nearly."
    rng = np.random.default_rng(1)
    content = np.stack([np.exp(rng.normal(3, 0.1, 3000)), rng.normal(0.3, 0.02, 3000), rng.normal(-0.2, 0.05, 3000)], 1).astype(np.float32)
    data = Ragged(content, np.arange(0, 3001, 6))
    torch.manual_seed(1)
    flow = FlowMatching(width=32, layers=1).learn_scale(data)
    train(flow, data, config=TrainingConfig(epochs=12, batch_size=50, lr=3e-3), progress=False)
    jets = flow.generate(200, steps=20)
    assert ak.all(ak.num(jets) == 6)
    drawn = np.stack([ak.to_numpy(ak.flatten(np.log(jets.pt))), ak.to_numpy(ak.flatten(jets.eta_rel)), ak.to_numpy(ak.flatten(jets.phi_rel))], 1)
    assert np.allclose(drawn.mean(0), [3, 0.3, -0.2], atol=[0.04, 0.01, 0.02]) and np.allclose(drawn.std(0), [0.1, 0.02, 0.05], rtol=0.3)


def small(lengths=(3, 1, 5)):
    content = np.random.default_rng(1).uniform(0.1, 0.5, (sum(lengths), 3)).astype(np.float32)
    torch.manual_seed(1)
    data = Ragged(content, np.append(0, np.cumsum(lengths)))
    return FlowMatching(width=8, layers=1, width_global=2).learn_scale(data), data


@pytest.mark.parametrize("wrong", [dict(n=-1), dict(n=1.5), dict(n=True), dict(n="many"), dict(seed=-1), dict(seed=2**64), dict(steps=0), dict(steps=1e9), dict(steps=None)])
def test_odd_options_name_themselves(wrong):
    with pytest.raises(OmnijetError, match=f"{next(iter(wrong))} is"):
        small()[0].generate(**{"n": 2, "steps": 2, **wrong})


@pytest.mark.parametrize("wrong", [dict(width=0), dict(layers=1.5), dict(width_global=True), dict(width="wide")])
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


def test_jets_without_constituents():
    flow, data = small(lengths=(3, 0, 5))
    train(flow, data, config=TrainingConfig(epochs=2, batch_size=2), progress=False)
    jets = flow.generate(20, steps=2)
    assert set(ak.num(jets).to_list()) == {0, 3, 5} and np.isfinite(ak.to_numpy(ak.flatten(jets.pt))).all()
