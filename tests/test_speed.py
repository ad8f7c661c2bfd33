"""Every benchmark runs in small and gives its ratios; how large they are is for `omnijet bench` to say."""
import math
import re
from pathlib import Path

from omnijet.speed import BENCHES, bench_showers, peak_memory, seconds


def test_every_bench_is_tried():
    "All but the showers' in chapter 09, whose examples are tests, too."
    chapter = (Path(__file__).parent.parent / "nbs" / "09_speed.ipynb").read_text(encoding="utf-8")
    for bench in {bench for benches in BENCHES.values() for bench in benches} - {bench_showers}:
        assert re.search(rf"(assert|figures =) {bench.__name__}\(", chapter), bench
    assert set(BENCHES) == {"data", "observables", "vqvae", "gpt", "widgets"}


def test_a_bench_prints_its_ratios(capsys):
    figures = bench_showers(3)
    ratios = [value for name, value in figures.items() if "ratio" in name]
    assert ratios and all(ratio > 0 and math.isfinite(ratio) for ratio in ratios)
    printed = capsys.readouterr().out
    assert all(name in printed for name in figures)


def test_the_shortest_time_counts_and_memory_is_of_a_process_of_its_own():
    clock = iter([0, 5, 5, 7]).__next__
    assert seconds(lambda: None, repeats=2, clock=clock) == 2
    assert peak_memory("x = bytearray(80_000_000)") - peak_memory("x = 0") > 0.05
