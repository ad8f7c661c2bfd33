"""Statistics: widths and areas with their errors, distances, numbers with keys and their file."""
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import curve_fit
from scipy.stats import entropy, wasserstein_distance
from sklearn.metrics import roc_auc_score

from omnijet.files import OmnijetError
from omnijet.statistics import (
    PAPER, QUANTITIES, auc, auc_with_error, fit_gaussians, identity, number, quantile_kl, read_numbers, record,
    peak_width, ratio_with_error, resample, resolution, select, show, two_sample_auc, w1, w1_with_error,
)


def test_resampling_gives_the_error_of_a_mean():
    values = np.random.default_rng(1).normal(3, 2, 400)
    means = resample(values, np.mean, draws=1000)
    assert means.shape == (1001,) and means[0] == values.mean()
    assert means[1:].std() == pytest.approx(0.1, rel=0.15)
    assert resample(values, np.mean, draws=0).shape == (1,)
    assert np.array_equal(resample(values, np.mean, 5, seed=2), resample(values, np.mean, 5, seed=2))


def test_gaussian_fit_is_scipys():
    def gaussian(x, a, m, s):
        return a * np.exp(-((x - m) / s)**2 / 2)

    rng, edges = np.random.default_rng(3), np.linspace(-3, 3, 61)
    x = (edges[1:] + edges[:-1]) / 2
    samples = [rng.normal(0, 1, 500), rng.standard_t(2, 5000), rng.normal(0.4, 0.7, 100), rng.exponential(1, 2000) - 0.7]
    counts = np.array([np.histogram(s, edges)[0] for s in samples], dtype=float)
    fitted = np.array(fit_gaussians(counts, x, steps=300)).T
    for histogram, ours in zip(counts, fitted):
        bounds = ([0, -3, 0.1], [np.inf, 3, 6])
        theirs, _ = curve_fit(gaussian, x, histogram, p0=(histogram.max(), 0, 1), bounds=bounds)
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3)


def test_bootstrap_errors_are_the_spread_of_experiments():
    rng = np.random.default_rng(5)
    fits = [resolution(rng.normal(1, 3, 400), bootstrap=100, seed=i) for i in range(60)]
    for name in ("bias", "sigma_gauss", "half_width"):
        spread, claimed = np.std([f[name] for f in fits]), np.mean([f[name + "_error"] for f in fits])
        assert 0.6 < claimed / spread < 1.6, name


def test_resolution_edges():
    with pytest.raises(OmnijetError, match="12 jets are too few"):
        resolution(np.arange(12.0))
    with pytest.raises(OmnijetError, match="not finite"):
        resolution(np.append(np.arange(50.0), np.inf))
    nothing = resolution(np.full(50, 2.5))
    assert nothing.pop("n_jets") == 50 and nothing.pop("bias") == 2.5 and set(nothing.values()) == {0.0}
    exact = resolution(np.random.default_rng(1).normal(size=100), bootstrap=0)
    assert all(exact[name + "_error"] == 0 for name in ("bias", "sigma_gauss", "half_width"))


def test_auc_is_scikit_learns():
    rng = np.random.default_rng(1)
    truth, scores = rng.random(500) < 0.3, np.round(rng.random(500), 2)  # with ties
    assert auc(scores, truth) == pytest.approx(roc_auc_score(truth, scores))
    assert np.isnan(auc(scores, np.ones(500, bool)))


@pytest.mark.parametrize("kind", [int, np.uint8, float, object, list, torch.tensor])
def test_labels_of_any_type_are_labels(kind):
    "Integers were once taken for positions in the scores, and gave areas of 2."
    truth = np.array([False, True, True, False, True, False])
    scores = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    labels = kind(truth) if kind in (list, torch.tensor) else truth.astype(kind)
    assert auc(scores, labels) == auc(scores, truth) == pytest.approx(roc_auc_score(truth, scores))
    assert auc_with_error(scores, labels) == auc_with_error(scores, truth)


@pytest.mark.parametrize("labels", [[0, 1, 2], [-1, 1, 1], [0.0, 0.5, 1.0], [0, 1, np.nan], ["0", "1", "1"]])
def test_other_labels_are_refused(labels):
    for area in (auc, auc_with_error):
        with pytest.raises(OmnijetError, match="0 or 1"):
            area(np.arange(3.0), labels)


def test_auc_with_its_error():
    "The spread of the AUC over repeated samples is what the error says."
    rng, positive = np.random.default_rng(5), np.arange(400) < 150
    found = np.array([auc_with_error(rng.normal(size=400) + 0.8 * positive, positive) for _ in range(3000)])
    assert found[:, 0].mean() == pytest.approx(0.7142, abs=0.002)  # Φ(0.8/√2)
    assert found[:, 1].mean() == pytest.approx(found[:, 0].std(), rel=0.06)


def test_trees_see_a_shift_and_none_where_there_is_none():
    rng = np.random.default_rng(1)
    first, second, third = ({"x": rng.normal(shift, 1, 500)} for shift in (0, 0, 1))
    area, error = two_sample_auc(first, second)
    assert abs(area - 0.5) < 4 * error and error == pytest.approx(np.sqrt(1001 / (12 * 500 * 500)), rel=0.05)
    area, error = two_sample_auc(first, third, seeds=2)
    assert 0.6 < area < 0.76 + 3 * error and error < 0.02  # Φ(1/√2) = 0.76 at best
    assert two_sample_auc(first, third, seeds=2) == (area, error)
    for wrong in (dict(seeds=0), dict(seeds=1.5), dict(seed=-1)):
        with pytest.raises(OmnijetError, match="seed"):
            two_sample_auc(first, third, **wrong)


def test_trees_do_not_know_a_jet_by_its_twin():
    "Before and after, hardly changed: trees that learnt one with a label give the other the opposite one, unless both are on one side."
    rng = np.random.default_rng(2)
    before = {name: rng.normal(size=600) for name in "abc"}
    after = {name: x + rng.normal(0, 1e-3, 600) for name, x in before.items()}
    area, error = two_sample_auc(before, after)
    assert area < 0.5 - 3 * error
    area, error = two_sample_auc(before, after, paired=True)
    assert abs(area - 0.5) < 3 * error
    with pytest.raises(OmnijetError, match="600 and 599 jets are not the same"):
        two_sample_auc(before, {name: x[1:] for name, x in after.items()}, paired=True)


def test_width_of_a_peak():
    values = np.array([0.0, 10, 11, 12, 50])
    assert peak_width(values) == 1 and peak_width(values, 0.6) == 2 and peak_width(values, 1) == 50
    assert peak_width(values[::-1] + 100) == 1
    rng = np.random.default_rng(1)
    ratios = np.array([ratio_with_error(rng.normal(size=400), rng.normal(size=600), peak_width, draws=50) for _ in range(60)])
    assert abs(ratios[:, 0].mean() - 1) < 0.03 and ratios[:, 1].mean() == pytest.approx(ratios[:, 0].std(), rel=0.4)
    for wrong in ([], [1.0], [1.0, np.nan]):
        with pytest.raises(OmnijetError):
            peak_width(wrong)


@settings(deadline=None, max_examples=50)
@given(*[st.lists(st.floats(-100, 100), min_size=1, max_size=30)] * 2)
def test_w1_agrees_with_scipy(a, b):
    assert w1(a, b) == pytest.approx(wasserstein_distance(a, b), abs=1e-9)


def test_w1_errors():
    rng = np.random.default_rng(3)
    a, b = rng.normal(0, 1, 10_000), rng.normal(0.5, 1, 8000)
    floor, distance = w1_with_error(a), w1_with_error(a, b)
    assert floor[0] < 0.06 and abs(distance[0] - 0.5) < 0.06 and 0 < distance[1] < 0.05


def test_quantile_kl_is_the_entropy_of_quantile_histograms():
    rng = np.random.default_rng(4)
    a, b = rng.normal(size=5000), rng.normal(0.3, 1.2, 4000)
    edges = np.quantile(a, np.linspace(0.001, 0.999, 30))
    expected = entropy(*(np.histogram(x, edges, density=True)[0] + 1e-8 for x in (a, b)))
    assert quantile_kl(a, b) == pytest.approx(expected)


def test_number():
    n = number("mass_sigma", np.float32(8.5), np.nan, np.int64(300), tokenizer="conditional-512", jet_class="TTBar")
    assert n == {"key": "mass_sigma", "tokenizer": "conditional-512", "jet_class": "TTBar", "value": 8.5, "error": None,
                 "title": "σ (Gaussian fit) of the mass difference, conditional-512, t → bqq′", "unit": "GeV",
                 "n_jets": 300, "paper": 8.3}
    assert number("mass_sigma", 8.5, tokenizer="conditional-512", jet_class="HToBB")["paper"] is None
    sized = number("accuracy", 0.8, strategy="finetune", size=np.int64(100), model=None)
    assert sized["paper"] == 0.84 and sized["title"] == "accuracy, fine-tuned, 100 jets" and "model" not in sized
    json.dumps(sized)
    with pytest.raises(OmnijetError, match="no quantity 'mass_sigm'.*mass_sigma"):
        number("mass_sigm", 1.0)
    with pytest.raises(OmnijetError, match="number 'auc': paper must come from the tables"):
        number("auc", 1.0, paper=0.5)


def test_the_papers_values_belong_to_quantities():
    for key, value, which in PAPER:
        assert key in QUANTITIES and number(key, 1.0, **which)["paper"] == value


def test_select_and_identity():
    a, b = (number("accuracy", 0.5, network=network, sample="original") for network in ("DeepSets", "Transformer"))
    c = number("mean_auc", 0.5, network="DeepSets", tokenizer="binned-21")
    assert select([a, b, c], network="DeepSets") == [a, c]
    assert select([a, b, c], "mean_auc", "auc") == [c] and select([a, b, c], tokenizer=None) == [a, b]
    assert select([a, b, c]) == [a, b, c] and select([a, b, c], "auc") == []
    assert identity(a) == identity(a | {"value": 0.7, "title": "?"}) != identity(b)


def test_results_are_merged(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps({"preset": "smoke", "chapters": {"01_vqvae": {"seconds": 3.0, "numbers": {}}}}))
    sigma, area = number("mass_sigma", 8.5, 0.1, 300, tokenizer="conditional-512"), number("auc", 0.57)
    record(tmp_path, "01_vqvae", [sigma])
    record(tmp_path, "01_vqvae", [area, sigma | {"value": 8.4}])
    record(tmp_path, "03_gpt", [area])
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["preset"] == "smoke" and results["chapters"]["01_vqvae"]["seconds"] == 3.0
    assert read_numbers(tmp_path, "01_vqvae") == [sigma | {"value": 8.4}, area]
    assert read_numbers(tmp_path / "results.json") == [sigma | {"value": 8.4}, area, area]
    assert read_numbers(tmp_path, "05_transfer") == []


def test_nothing_is_left_out_silently(tmp_path):
    n = number("auc", 0.5)
    with pytest.raises(OmnijetError, match="03_gpt has two numbers 'AUC'"):
        record(tmp_path, "03_gpt", [n, n | {"value": 0.6}])
    assert not (tmp_path / "results.json").exists()
    old = {"chapters": {"03_gpt": {"numbers": {"AUC": {"value": 0.5}}}, "04_generation": {"numbers": {"AUC": {"value": 0.5}}}}}
    (tmp_path / "results.json").write_text(json.dumps(old))
    with pytest.raises(OmnijetError, match="without keys.*run it again"):
        read_numbers(tmp_path)
    with pytest.warns(UserWarning, match="03_gpt without keys"):
        record(tmp_path, "03_gpt", [n])
    assert read_numbers(tmp_path, "03_gpt") == [n]
    assert json.loads((tmp_path / "results.json").read_text())["chapters"]["04_generation"] == old["chapters"]["04_generation"]


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_damaged_results(tmp_path, text):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(OmnijetError, match="results.json"):
        read_numbers(tmp_path)
    if text == "{":
        with pytest.raises(OmnijetError, match="results.json: cannot be read"):
            record(tmp_path, "01_vqvae", [])
    with pytest.raises(OmnijetError, match="nosuch"):
        read_numbers(tmp_path / "nosuch")


def test_show():
    numbers = [number("auc", 0.5712, 0.0123, 12_000), number("auc", float("inf"), observable="<b>"),
               number("jets_needed", "more than 1,000", size=100), number("parameters", 1_234_567)]
    table = show(numbers).data
    assert "0.571 ± 0.012" in table and "12,000" in table and "&lt;b&gt;" in table and "—" in table
    assert "more than 1,000" in table and "<td>10,000</td>" in table and "1,234,567" in table
    assert "2 more in results.json" in show(numbers, rows=2).data and "more in" not in table


@pytest.mark.parametrize("wrong", [[], [1.0, np.nan], [np.inf], [[1.0, 2.0]], 3.0])
def test_samples_that_cannot_be_compared(wrong):
    for distance in (w1, quantile_kl):
        for pair in ((wrong, [1.0, 2.0]), ([1.0, 2.0], wrong)):
            with pytest.raises(OmnijetError, match="expected finite numbers"):
                distance(*pair)
    assert np.isfinite(quantile_kl([1.0, 2.0, 3.0], [50.0]))  # far outside


def test_scores_and_labels_belong_together():
    for scores, labels in (([0.1, 0.2], [0, 1, 1]), ([0.1, np.nan], [0, 1]), ([0.1, 0.2], [[0, 1]])):
        with pytest.raises(OmnijetError, match="expected one number for each"):
            auc(scores, labels)
    assert np.isnan(auc_with_error([0.1, 0.2, 0.3], [0, 0, 1])[1]) and auc([0.1, 0.2, 0.3], [0, 0, 1]) == 1


@pytest.mark.parametrize("call", [lambda x: resample(np.arange(3), np.mean, draws=x), lambda x: w1_with_error(np.arange(9.0), draws=x),
                                  lambda x: resolution(np.arange(40.0), bootstrap=x), lambda x: quantile_kl([1.0, 2.0], [1.0], n_bins=x)])
def test_counts_that_cannot_be(call):
    for wrong in (-1, 1.5, "many", True, np.nan):
        with pytest.raises(OmnijetError, match="is .*, expected a whole number"):
            call(wrong)
    call(np.int8(4))
    call("4")


def test_two_samples_need_the_same_observables():
    for pair in (({"a": [1.0] * 9}, {"b": [1.0] * 9}), ({"a": [1.0] * 9}, {"a": [1.0] * 4}), ({}, {})):
        with pytest.raises(OmnijetError, match="same observables"):
            two_sample_auc(*pair)


@pytest.mark.parametrize("value, kept", [(np.array(2.0), 2.0), (torch.tensor(3), 3.0), (None, None), (np.float16(np.nan), None), (torch.tensor(np.inf), None)])
def test_values_of_any_library(value, kept):
    n = number("auc", value, value, n_jets=np.array(7), size=np.array(100))
    assert n["value"] == n["error"] == kept and n["n_jets"] == 7 and n["size"] == 100
    json.dumps(n, allow_nan=False)
    for wrong in (dict(value=[1]), dict(value=np.ones(1)), dict(value=1, n_jets=-1), dict(value=1, size=[1])):
        with pytest.raises(OmnijetError):
            number("auc", **wrong)


def test_titles_of_quantiles():
    assert number("shape_quantile", 90.0, observable="mass", quantile=0.1, jet_class="HToBB")["title"] == "simulated jets, mass, 10% quantile, H → bb"


@pytest.mark.parametrize("text", ["[]", "3", '{"mine": 1}', '{"chapters": []}', '{"chapters": {"03_gpt": 3}}', '{"chapters": {"03_gpt": {"numbers": [1]}}}'])
def test_results_of_others_are_kept(tmp_path, text):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(OmnijetError, match="results.json"):
        record(tmp_path, "03_gpt", [number("auc", 0.5)])
    assert (tmp_path / "results.json").read_text() == text
