"""Observables against written-out formulas, at their edges, and with bad input."""
import warnings

import awkward as ak
import numpy as np
import pytest

from omnijet.files import OmnijetError
from omnijet.data import sample_jets
from omnijet.observables import (
    NINE, OBSERVABLES, SIX, compare, d2, girth, jet_eta, jet_mass, jet_pt, largest_dr, leading_fraction, n_constituents, n_subjettiness,
    n_subjettiness_written_out, observables, save_figure, sum_pt2,
)


@pytest.fixture(scope="module")
def constituents():
    """1,000 jets of all classes; every tenth is cut down to 1, 2 or 3 constituents."""
    whole = sample_jets(max_jets=100).constituents
    keep = np.where(np.arange(len(whole)) % 10 == 0, 1 + np.arange(len(whole)) // 10 % 3, 128)
    return whole[ak.local_index(whole.pt) < keep]


def arrays(c):
    return [np.asarray(c[field], dtype=float) for field in ("pt", "eta_rel", "phi_rel")]


@pytest.mark.parametrize("axes, beta, every", [("kt", 1.0, 1), ("wta", 2.0, 5)])
def test_n_subjettiness_is_the_formula(constituents, axes, beta, every):
    constituents = constituents[::every]
    fast = n_subjettiness(constituents, axes=axes, beta=beta, batch_size=333)
    slow = np.array([[n_subjettiness_written_out(*arrays(c), N, beta=beta, axes=axes) for N in (1, 2, 3, 4)] for c in constituents])
    assert np.isfinite(fast).all()
    np.testing.assert_allclose(fast, slow, rtol=0, atol=1e-6)
    small = n_constituents(constituents)[:, None] <= [1, 2, 3, 4]
    assert small.sum() > 200 / every and (fast[small] == 0).all() and (fast[~small] > 0).all()


def d2_written_out(pt, eta, phi, beta=1.0):
    n, z = len(pt), pt / pt.sum()
    R = [[np.hypot(eta[i] - eta[j], (phi[i] - phi[j] + np.pi) % (2 * np.pi) - np.pi)**beta for j in range(n)] for i in range(n)]
    e2 = sum(z[i] * z[j] * R[i][j] for i in range(n) for j in range(i))
    e3 = sum(z[i] * z[j] * z[k] * R[i][j] * R[j][k] * R[i][k] for i in range(n) for j in range(i) for k in range(j))
    return e3 / e2**3 if n > 2 else 0.0


@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_d2_is_the_formula(constituents, beta):
    some = constituents[::20]
    np.testing.assert_allclose(d2(some, beta=beta), [d2_written_out(*arrays(c), beta=beta) for c in some], rtol=1e-8)
    np.testing.assert_allclose(d2(constituents, memory=5_000), d2(constituents), rtol=1e-10)


def test_d2_is_fastjets(constituents):
    fastjet = pytest.importorskip("fastjet")
    some = constituents[n_constituents(constituents) > 3]
    some = some[ak.max(np.hypot(some.eta_rel, some.phi_rel), axis=1) < 0.4][:100]     # FastJet drops what the clustering sets aside
    pt, eta, phi = (ak.values_astype(some[field], float) for field in ("pt", "eta_rel", "phi_rel"))
    particles = ak.zip({"px": pt * np.cos(phi), "py": pt * np.sin(phi), "pz": pt * np.sinh(eta), "E": pt * np.cosh(eta)}, with_name="Momentum4D")
    formatwarning = warnings.formatwarning
    clustered = fastjet.ClusterSequence(particles, fastjet.JetDefinition(fastjet.kt_algorithm, 0.8))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = ak.to_numpy(clustered.exclusive_jets_energy_correlator(njets=1, func="d2"))
    warnings.formatwarning = formatwarning
    assert len(some) > 5
    np.testing.assert_allclose(d2(some), theirs, rtol=1e-6)


def test_rotation_in_phi_changes_nothing(constituents):
    some = constituents[:100]
    turned = ak.with_field(some, (some.phi_rel + 3.0 + np.pi) % (2 * np.pi) - np.pi, "phi_rel")     # across the seam at ±π
    for name in ("mass", "pt", "tau1", "tau3", "tau21", "d2"):
        np.testing.assert_allclose(observables(turned, [name])[name], observables(some, [name])[name], rtol=1e-3, atol=1e-4)


def test_masses_of_known_jets():
    jets = ak.Array([[], [{"pt": 7.0, "eta_rel": 0.3, "phi_rel": 0.1}], [{"pt": 3.0, "eta_rel": 0.1, "phi_rel": 0.0}, {"pt": 4.0, "eta_rel": -0.1, "phi_rel": 0.0}]])
    np.testing.assert_allclose(jet_mass(jets), [0, 0, np.sqrt(24 * (np.cosh(0.2) - 1))], atol=1e-5)
    np.testing.assert_allclose(jet_pt(jets), [0, 7, 7])
    np.testing.assert_allclose(jet_eta(jets), [0, 0.3, np.arcsinh((3 * np.sinh(0.1) - 4 * np.sinh(0.1)) / 7)])
    every = observables(jets, "all")
    assert list(every) == list(OBSERVABLES) and all(len(v) == 3 and np.isfinite(v).all() for v in every.values())
    assert all(len(v) == 0 for v in observables(jets[:0], "all").values())


def test_bad_constituents():
    good = [{"pt": 7.0, "eta_rel": 0.3, "phi_rel": 0.1}]
    with pytest.raises(OmnijetError, match="jet 1 has a constituent"):
        jet_mass(ak.Array([good, [{"pt": np.nan, "eta_rel": 0.3, "phi_rel": 0.1}]]))
    with pytest.raises(OmnijetError, match="negative pt"):
        n_subjettiness(ak.Array([[{"pt": -1.0, "eta_rel": 0.3, "phi_rel": 0.1}]]))
    with pytest.raises(OmnijetError, match="no field phi_rel"):
        jet_mass(ak.Array([[{"pt": 1.0, "eta_rel": 0.3}]]))
    with pytest.raises(OmnijetError, match="no observable tau99"):
        observables(ak.Array([good]), ["tau99"])
    with pytest.raises(OmnijetError, match='"kt" or "wta"'):
        n_subjettiness(ak.Array([good]), axes="antikt")


def test_compare_and_save(tmp_path):
    import matplotlib
    matplotlib.use("Agg")
    rng = np.random.default_rng(1)
    fig = compare({"a": rng.normal(size=100), "b": rng.normal(size=50)}, bins=(10, -2, 2), xlabel="x")
    assert save_figure(fig, tmp_path, "fig").stat().st_size > 1000
    assert sorted(p.name for p in (tmp_path / "figures").iterdir()) == ["fig.pdf", "fig.png"]
    with pytest.raises(OmnijetError, match="'b' has no entries|'b'"):
        compare({"a": [1.0], "b": []})
    with pytest.raises(OmnijetError, match="none of the samples"):
        compare({"a": [1.0]}, reference="c")


def test_odd_options():
    jets = sample_jets("TTBar", 3)
    assert list(observables(jets, "mass")) == ["mass"] and n_subjettiness(jets, N=np.int8(2)).shape == (3, 1)
    for wrong in (dict(N=0), dict(N=1.5), dict(beta=0), dict(beta=np.nan), dict(R0=-1), dict(batch_size=-1)):
        with pytest.raises(OmnijetError, match=f"^{next(iter(wrong))} is"):
            n_subjettiness(jets, **wrong)
    with pytest.raises(OmnijetError, match="^beta is"):
        d2(jets, beta="far")


def test_missing_values_and_no_lists():
    one = {"pt": 7.0, "eta_rel": 0.3, "phi_rel": 0.1}
    for jets in ([[one], None], [[one, None]], [[one | {"pt": None}]], [one]):
        with pytest.raises(OmnijetError, match="expected lists, nothing missing"):
            observables(ak.Array(jets))
    with pytest.raises(OmnijetError, match="jet 0 has a constituent"):
        jet_mass([[one | {"eta_rel": 2000.0}]])


def test_samples_and_bins_that_cannot_be_drawn():
    import matplotlib.pyplot as plt

    for values in ([1.0, np.nan], [np.inf, 1.0]):
        with pytest.raises(OmnijetError, match="sample 'b' has a value that is not finite"):
            compare({"a": [1.0], "b": values})
    for bins in (0, -1, 1.5, None, np.nan, [1.0, 1.0], [1.0], (3, 2, 1)):
        with pytest.raises(OmnijetError, match="^bins"):
            compare({"a": [1.0, 2.0]}, bins=bins)
    for bins in (np.int64(3), np.array(3), (np.int8(3), 0, 1)):
        plt.close(compare({"a": ak.Array([1.0, 2.0])}, bins=bins))


def test_style_starts_from_the_defaults_and_leaves_the_backend():
    import matplotlib.pyplot as plt

    from omnijet.observables import style

    backend = plt.get_backend()
    with plt.rc_context({"text.usetex": True, "figure.constrained_layout.use": True, "axes.formatter.use_locale": True}):
        style()
        assert not (plt.rcParams["text.usetex"] or plt.rcParams["figure.constrained_layout.use"] or plt.rcParams["axes.formatter.use_locale"])
        assert plt.get_backend() == backend and plt.rcParams["figure.figsize"] == [6, 5]


def test_a_figure_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    fig, write = compare({"a": [1.0, 2.0]}), Figure.savefig

    def half(self, path, **options):
        write(self, path, **options)
        if options["format"] == "png":
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", half)
    with pytest.raises(OmnijetError, match="fig.png: cannot be written"):
        save_figure(fig, tmp_path, "fig")
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["fig.pdf"]


def test_many_jets_have_the_observables_of_few():
    jets, names = sample_jets(), ("mass", "tau32", "n_constituents")
    many, few = observables(ak.concatenate([jets, jets[:100]]), names), observables(jets[:100], names)
    assert len(jets) == 10_000 and all(np.array_equal(many[name][10_000:], few[name], equal_nan=True) for name in names)


def test_spread_of_momentum_by_hand():
    constituents = ak.zip({"pt": [[20.0, 50.0, 30.0], [], [10.0]], "eta_rel": [[0.0, 0.3, 0.0], [], [0.6]], "phi_rel": [[0.0, 0.4, 0.1], [], [0.8]]})
    assert np.allclose(girth(constituents), [0.28, 0, 1.0]) and np.allclose(largest_dr(constituents), [0.5, 0, 1.0])
    assert np.allclose(sum_pt2(constituents), [3800, 0, 100])
    fractions = [leading_fraction(constituents, rank) for rank in (1, 2, 3, 4)]
    assert np.allclose(fractions, [[0.5, 0, 1], [0.3, 0, 0], [0.2, 0, 0], [0, 0, 0]])
    found = observables(constituents, NINE)
    assert list(found) == list(NINE) and np.array_equal(found["z2"], fractions[1]) and not set(NINE) & set(SIX)
    with pytest.raises(OmnijetError, match="rank is"):
        leading_fraction(constituents, 0)


def test_spread_of_momentum_does_not_depend_on_the_order_of_constituents():
    rng, jets = np.random.default_rng(2), sample_jets("TTBar", 40).constituents
    mixed = ak.Array([ak.to_list(jet[rng.permutation(len(jet))]) for jet in jets])
    names = ["girth", "largest_dr", "sum_pt2", "z1", "z2", "z3"]
    ours, theirs = observables(jets, names), observables(mixed, names)
    assert all(np.allclose(ours[name], theirs[name]) for name in names)
