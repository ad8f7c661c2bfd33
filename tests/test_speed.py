"""Every benchmark runs in small and gives its ratios; how large they are is for `omnijet bench` to say."""
import math

import pytest

from omnijet.speed import (
    BENCHES, bench_data, bench_gpt, bench_memory, bench_observables, bench_showers, bench_simulation, bench_vqvae, bench_widgets, peak_memory, seconds,
)

TINY = {
    bench_data: lambda: bench_data(500, 1000),
    bench_memory: lambda: bench_memory(1, 2, 100),
    bench_simulation: lambda: bench_simulation(4, "ZToQQ", shards=2, pairs=1),
    bench_showers: lambda: bench_showers(3),
    bench_observables: lambda: bench_observables(200),
    bench_vqvae: lambda: bench_vqvae(16, width=8, blocks=1, heads=2, batch_size=16, steps=2, plain_steps=1),
    bench_gpt: lambda: bench_gpt("cpu", (8, 2, 8, 1), codebook_size=16, width=8, blocks=1, heads=2),
    bench_widgets: lambda: bench_widgets(1, max_jets=5),
}


def test_every_bench_is_tried():
    assert {bench for benches in BENCHES.values() for bench in benches} == set(TINY)
    assert set(BENCHES) == {"data", "observables", "vqvae", "gpt", "widgets"}


@pytest.mark.parametrize("bench", TINY, ids=lambda bench: bench.__name__)
def test_ratios(bench, monkeypatch, capsys):
    monkeypatch.setenv("OMNIJET_HEADLESS", "1")
    figures = TINY[bench]()
    ratios = [value for name, value in figures.items() if "ratio" in name]
    assert ratios and all(ratio > 0 and math.isfinite(ratio) for ratio in ratios)
    printed = capsys.readouterr().out
    assert all(name in printed for name in figures)


def test_the_shortest_time_counts_and_memory_is_of_a_process_of_its_own():
    clock = iter([0, 5, 5, 7]).__next__
    assert seconds(lambda: None, repeats=2, clock=clock) == 2
    assert peak_memory("x = bytearray(80_000_000)") - peak_memory("x = 0") > 0.05
