"""Draw README's first picture, a jet that the shipped backbone writes token by token: figures/growing_jet.png."""
import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LinearSegmentedColormap

from omnijet.data import to_numpy
from omnijet.gpt import GenerativeModel
from omnijet.observables import jet_mass, style
from omnijet.playground import Growing
from omnijet.vqvae import VQVAE

RING, COLOURS = "#e76300", LinearSegmentedColormap.from_list("first to last", ["#172a6e", "#3f90da", "#92dadd"])


def area(pt):
    return 16 * np.sqrt(pt)


def draw_moment(ax, growing, codes, longest):
    "The jet of these first codes as disks, the twenty likeliest next constituents as rings."
    growing.codes, growing.finished = codes, False
    jet, (tokens, p) = growing.constituents(), growing.expected(20)
    pt, eta, phi = (to_numpy(jet[0][name]) for name in ("pt", "eta_rel", "phi_rel"))
    ax.scatter(eta, phi, area(pt), np.arange(len(pt)), cmap=COLOURS, vmin=0, vmax=longest, alpha=0.75, linewidth=0)
    next_pt, next_eta, next_phi = growing.places(tokens[tokens != growing.stop]).T
    shares = p[tokens != growing.stop]
    ax.scatter(next_eta, next_phi, area(next_pt), facecolors="none", edgecolors=RING, linewidths=0.7 + 6 * shares, zorder=3)
    ax.set_title(f"{len(codes)} token{'s'[:len(codes) != 1]}, {jet_mass(jet)[0]:.0f} GeV", fontsize=13)
    ax.set(xlim=(-0.77, 0.77), ylim=(-0.77, 0.77), xticks=[-0.5, 0, 0.5], yticks=[-0.5, 0, 0.5], xlabel=r"$\eta_\mathrm{rel}$", aspect="equal")


def draw_tokens(ax, codes, moments):
    "The sequence as boxes, in the colours of the disks; a mark at each of the moments drawn above."
    ax.set(xlim=(-0.6, len(codes) + 1.6), ylim=(-0.9, 1))
    for i, text in enumerate(["start", *map(str, codes), "stop"]):
        inside = 0 < i <= len(codes)
        colour = COLOURS((i - 1) / len(codes)) if inside else "#dddddd"
        ink = "white" if inside and i < len(codes) / 2 else "black"
        ax.add_patch(plt.Rectangle((i - 0.48, 0), 0.96, 0.9, color=colour, linewidth=0))
        ax.text(i, 0.45, text, rotation=90, ha="center", va="center", color=ink, fontsize=8)
        if i in moments:
            ax.text(i, -0.12, f"▲\n{i}", ha="center", va="top", fontsize=10, linespacing=1.1)
    ax.axis("off")


def draw_growing_jet(seed: int = 1, number: int = 20, model="omnijet/backbone", tokenizer="omnijet/tokenizer-8192"):
    "Five moments of jet `number` of a seed, and all its tokens."
    model, tokenizer = GenerativeModel.from_pretrained(model), VQVAE.from_pretrained(tokenizer)
    model = model.double()  # the same jet on every processor
    growing = Growing(model, tokenizer, number, seed=seed)
    growing.draw(everything=True)
    codes = list(growing.codes)
    moments = sorted({min(n, len(codes)) for n in (1, 4, 12, len(codes) // 2, len(codes))})
    style()
    fig = plt.figure(figsize=(14, 4.3))
    grid = fig.add_gridspec(2, len(moments), height_ratios=[4, 1.1], hspace=0.32, wspace=0.12, left=0.05, right=0.99, top=0.93, bottom=0.0)
    for column, n in enumerate(moments):
        ax = fig.add_subplot(grid[0, column])
        draw_moment(ax, growing, codes[:n], len(codes))
        ax.set_ylabel("" if column else r"$\phi_\mathrm{rel}$")
        ax.tick_params(labelleft=column == 0)
    draw_tokens(fig.add_subplot(grid[1, :]), codes, moments)
    return fig


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--number", type=int, default=20, help="which jet of this seed")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "figures" / "growing_jet.png")
    options = parser.parse_args()
    draw_growing_jet(options.seed, options.number).savefig(options.out, dpi=120)
    print(options.out)
