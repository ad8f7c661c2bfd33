"""The generative model without tokens."""
import awkward as ak
import numpy as np
import torch

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
