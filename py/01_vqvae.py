# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,-all
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Tokens
#
# > The vector quantizer, the conditional and the unconditional VQ-VAE, and binned tokens.
#
# A language model speaks in words from a finite vocabulary; a jet is a set of constituents with continuous momenta. What is lost when each
# constituent becomes one of 512 or 8192 integers, and how does it help that the integer is chosen, and read, in the context of the other
# constituents? This chapter is section II B and appendix A 1 of the paper.

# %% [markdown]
# ```mermaid
# flowchart LR
#     simulation --> jets
#     files --> jets
#     jets --> tokens --> backbone --> generated(new jets)
#     jets --> observables
#     backbone --> tagger
#     style tokens fill:#ffa90e,color:#111
# ```

# %%
#| default_exp vqvae

reads = ["00b_simulation"]         # chapters whose work this one needs
writes = ["tokenizers", "tokens"]  # what it leaves in the run folder

# %% tags=["parameters"]
preset = "smoke"
run_dir = "../runs/smoke"
seed = 1
shipped = False  # take those that come with omnijet where it has them
tokenizers = ["conditional-512", "unconditional-512", "binned-21"]  # codes, or bins a feature
backbone_tokenizer = "conditional-512"  # whose tokens the next chapters read
tokenizer_jets = {  # at most
    "train": 20_000,
    "val": 3_000,
}
tokenizer_model = {  # the paper: 128, 4, 8, 10 (in batches of 512), 0
    "width": 64,  # of the NormFormer blocks
    "blocks": 2,  # in the encoder, and as many in the decoder
    "heads": 4,
    "replace_freq": 80,  # steps without a hit after which a code is replaced
    "pt_power": 0.6,  # a constituent counts as p_T to this power
}
tokenizer_training = {  # of `TrainingConfig`
    "epochs": 4,
    "batch_size": 64,  # jets
    "lr": 4e-3,  # the largest; rises from lr_start, falls to lr_end
    "lr_start": 4e-4,
    "lr_end": 1e-5,
    "precision": "auto",
    "compile": False,
}
backbone_mirrors = True  # pre-training sees mirror images (the paper: no)

# %%
#| export
import math, re, warnings
from contextlib import suppress
from functools import partial, reduce
from pathlib import Path

import awkward as ak
import numpy as np
import torch
import torch.nn.functional as F
from fastcore.basics import patch
from torch import nn

from omnijet.files import OmnijetError, as_number, make_folder, progress_bar, read_metadata
from omnijet.data import (
    FEATURES, FeatureScaling, MAX_CONSTITUENTS, Ragged, iter_jets, jet_files, process_of,
    write_tokens,
)
from omnijet.observables import jet_mass
from omnijet.statistics import resolution
from omnijet.training import batches, device
from omnijet.models import (
    Linear, PretrainedMixin, check_shapes, find_pretrained, read_config, read_gabbro,
)

# %%
import tempfile

import matplotlib.pyplot as plt

from omnijet.data import CLASSES, read_jets, read_tokens, sample_folder, sample_jets
from omnijet.files import run_path
from omnijet.statistics import number, record, show
from omnijet.training import TrainingConfig, train, training_data


# %% [markdown]
# ## The nearest code
#
# A codebook holds $K$ vectors $e_k$; the token of an encoder output $z$ is the index of the nearest one. Since
# $\|z - e_k\|^2 = \|z\|^2 + \|e_k\|^2 - 2\,z\cdot e_k$ and the first term is the same for all $k$, one matrix product finds it. That is
# what a GPU likes. On a CPU the product for thousands of codes is slower than a k-d tree, since the vectors have only four components:
# both find the same code.

# %%
#| export
def nearest(z, codebook) -> torch.Tensor:  # (N, F), (K, F) -> (N,) int64
    "The index of the nearest code of each row."
    z, codebook = z.detach().float(), codebook.detach().float()
    if z.device.type == "cpu" and len(codebook) >= 1024:
        from scipy.spatial import cKDTree

        tree = cKDTree(codebook.numpy(), balanced_tree=False, compact_nodes=False)
        return torch.from_numpy(tree.query(z.numpy(), workers=torch.get_num_threads())[1])
    square = (codebook * codebook).sum(1)  # (K,)
    size = (2**21 if z.device.type == "cpu" else 2**27) // len(codebook)  # what stays in a cache
    products = (torch.addmm(square, part, codebook.T, alpha=-2) for part in z.split(max(1, size)))
    return torch.cat([distances.argmin(1) for distances in products])


def kmeans(z, num_codes: int) -> torch.Tensor:  # (N, F) -> (num_codes, F)
    "Centres of clusters (Lloyd's algorithm); if there are too few rows, these and points nearby."
    if len(z) <= num_codes:
        copies = z[torch.randint(len(z), (num_codes - len(z),), device=z.device)]
        return torch.cat([z, copies + 0.01 * z.std(0, correction=0) * torch.randn_like(copies)])
    centres = z[torch.randperm(len(z), device=z.device)[:num_codes]]
    for _ in range(10):
        codes = nearest(z, centres)
        count = torch.bincount(codes, minlength=num_codes)[:, None]  # (K, 1)
        total = torch.zeros_like(centres).index_add_(0, codes, z)  # (K, F)
        centres = torch.where(count > 0, total / count.clamp(min=1), centres)
    return centres


# %%
generator = torch.Generator().manual_seed(seed)
z = torch.randn(1000, 4, generator=generator)
codes_2048 = torch.randn(2048, 4, generator=generator)
for codes in (codes_2048, codes_2048[:512]):  # k-d tree, matrix product
    assert torch.equal(nearest(z, codes), torch.cdist(z, codes).argmin(1))


# %% [markdown]
# A codebook starts at the centres of encoder outputs, found by a few rounds of k-means.

# %%
def spread(z, centres):
    return (z - centres[nearest(z, centres)]).square().sum(1).mean().item()


torch.manual_seed(seed)
corners = torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0]])
clusters = corners.repeat_interleave(100, 0) + 0.1 * torch.randn(300, 2)
assert spread(clusters, kmeans(clusters, 12)) < spread(clusters, clusters[::25])
assert len(kmeans(clusters[:5], 12)) == 12


# %% [markdown]
# ## The quantizer
#
# Choosing an index has no gradient. The *straight-through* estimator passes the gradient at the quantized vector on to the encoder output as
# if nothing had happened,
#
# $$z_q = z + \mathrm{sg}[e - z], \tag{1}$$
#
# where sg stops the gradient: the value is that of the code $e$, the derivative that of $z$. Codebook and encoder are pulled together by
#
# $$\mathcal L_\mathrm{VQ} = \beta\,\|\mathrm{sg}[z] - e\|^2 + (1-\beta)\,\|z - \mathrm{sg}[e]\|^2 . \tag{2}$$
#
# Three additions make large codebooks work ([Huh et al., arXiv:2305.08842](https://arxiv.org/abs/2305.08842)), and the paper uses them all:
#
# - an **affine map**, shared by all codes and learned, moves the codebook as a whole. From the stored vectors $c_k$ it makes the codes
#
#   $$e_k = (1 + \lambda s)\,c_k + \lambda b, \tag{3}$$
#
#   with one scale $s$ and one bias $b$ for each component; $\lambda$ (`affine_lr`) says how fast they learn. Without it only codes that are hit
#   follow an encoder that moves, and the others are left behind for ever;
# - the **synchronized update**: by (1) alone a code hears of the task only in the next step, through the encoder output that it follows. So the code
#   itself gets a share $\nu$ (`sync_nu`) of the gradient that the task sends to $z_q$, in the same step;
# - codes that won nothing for `replace_freq` steps are **replaced** by encoder outputs of the current batch.
#
# Names, defaults of the state dict and mathematics are those of the authors' library vqtorch, so that published weights load. Here padding counts nowhere
# (not in the loss, not among the candidates for a replacement), and a replacement passes through the inverse of the affine map, so that it lands where
# it was meant to.

# %%
#| export
class AffineTransform(nn.Module):
    "The learned map of the whole codebook, equation 3."

    def __init__(self, feature_size: int, lr_scale: float):
        super().__init__()
        self.scale, self.bias = (nn.Parameter(torch.zeros(1, feature_size)) for _ in range(2))
        self.lr_scale = lr_scale

    def forward(self, codebook):  # (K, F)
        return (1 + self.lr_scale * self.scale) * codebook + self.lr_scale * self.bias

    def inverse(self, z):
        return (z - self.lr_scale * self.bias) / (1 + self.lr_scale * self.scale)


class VectorQuant(nn.Module):
    "A codebook that learns: vqtorch's VectorQuant with a mask. Paper: section II B, appendix A 1."

    def __init__(
        self, feature_size: int, num_codes: int,
        beta: float = 0.9,  # share of the codebook's side in equation 2
        sync_nu: float = 1.0,  # ν: share of the task's gradient that codes get
        affine_lr: float = 2.0,  # λ of the affine map; 0: no map
        replace_freq: int = 10,  # steps without a hit after which a code is replaced; 0: never
        kmeans_init: bool = True,  # start from k-means of the first training batch
    ):
        super().__init__()
        self.num_codes, self.replace_freq = num_codes, replace_freq
        self.beta, self.sync_nu = beta, sync_nu
        self.codebook = nn.Embedding(num_codes, feature_size)
        self.affine_transform = AffineTransform(feature_size, affine_lr) if affine_lr > 0 else None
        if replace_freq > 0:  # steps left to each code
            self.register_buffer("_counts", torch.full((num_codes,), float(replace_freq)))
        if kmeans_init:
            self.register_buffer("data_initialized", torch.zeros(1))

    def get_codebook(self):
        "The codebook after the affine map, (K, F)."
        weight = self.codebook.weight
        return self.affine_transform(weight) if self.affine_transform else weight

    @torch.no_grad()
    def _place(self, index, z):
        "Set codes so that after the affine map they are at `z`, in every process."
        weight = self.codebook.weight.data
        weight[index] = self.affine_transform.inverse(z) if self.affine_transform else z
        if torch.distributed.is_initialized():
            torch.distributed.broadcast(weight, 0)


# %% [markdown]
# The step itself. `mask` says which positions are real; only those are quantized.

# %%
#| export
def _mean_square(a, b, weight):  # (N, F), (N, F), (N,) or None
    return F.mse_loss(a, b) if weight is None else ((a - b).square() * weight[:, None]).mean()


def _usage(q, num_codes):
    "How often each code was hit (K,), and what there is to say about it."
    hits = torch.bincount(q, minlength=num_codes)
    perplexity = torch.exp(-torch.xlogy(hits / len(q), hits / len(q)).sum())
    return hits, {"used": (hits > 0).float().mean(), "perplexity": perplexity}


@patch
@torch.compiler.disable  # how many rows there are and which codes are dead depends on the data
def forward(
    self: VectorQuant,
    z: torch.Tensor,  # (…, F) encoder outputs
    mask: torch.Tensor = None,  # (…) bool: True where real; None: everywhere
    weight: torch.Tensor = None,  # (…) > 0: how much each counts in the loss and draws codes
):                                # z_q (…, F), zero where masked, and a dict
    "Quantize. The dict: codes q (N,) of the real positions, loss, perplexity, used, replaced."
    if mask is None:
        mask = torch.ones(z.shape[:-1], dtype=torch.bool, device=z.device)
    with torch.autocast(z.device.type, enabled=False):
        rows = z[mask].float()  # (N, F)
        w = None if weight is None else weight[mask].float()  # (N,)
        if wrong := int((~torch.isfinite(rows)).sum()):
            raise OmnijetError(f"{wrong} components of the encoder's output are not finite: "
                               "broken features, or a training that diverged")
        if self.training and hasattr(self, "data_initialized") and not self.data_initialized:
            drawn = slice(None) if w is None else torch.multinomial(w, len(rows), replacement=True)
            self._place(slice(None), kmeans(rows.detach()[drawn], self.num_codes))
            self.data_initialized.fill_(1)
        codebook = self.get_codebook()  # (K, F)
        q = nearest(rows, codebook)  # (N,)
        e = F.embedding(q, codebook)  # (N, F)
        loss = ((1 - self.beta) * _mean_square(rows, e.detach(), w)
                + self.beta * _mean_square(e, rows.detach(), w))  # equation 2
        z_q = rows + (e - rows).detach()  # equation 1
        z_q = z_q + self.sync_nu * (e - e.detach())  # nothing, but its gradient
    hits, usage = _usage(q, self.num_codes)
    replacing = self.training and self.replace_freq
    replaced = self._replace(hits, rows, w) if replacing else hits.new_zeros(())
    z_q = torch.zeros_like(z, dtype=z_q.dtype).masked_scatter(mask[..., None], z_q)
    return z_q, {"q": q, "loss": loss, "replaced": replaced, **usage}


@patch
@torch.no_grad()
def _replace(self: VectorQuant, hits, rows, weight):
    "Put codes that were not hit for long onto rows, likelier where the weight is large; how many."
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(hits)
    self._counts.sub_(1)
    self._counts[hits > 0] = self.replace_freq
    dead = torch.nonzero(self._counts <= 0)[:len(rows), 0]  # others: the next time
    if len(dead):
        drawn = (torch.randperm(len(rows), device=rows.device)[:len(dead)] if weight is None
                 else torch.multinomial(weight, len(dead)))
        self._place(dead, rows[drawn])
        self._counts[dead] = self.replace_freq
    return torch.tensor(float(len(dead)), device=rows.device)


# %% [markdown]
# A skewed toy set: 90 % of the vectors in a small spot, the rest spread out. After 200 steps no code is left unused.

# %%
def skewed(n):
    spot = torch.rand(n, 1) < 0.9
    return torch.where(spot, 0.05 * torch.randn(n, 4), 3 * torch.randn(n, 4))


torch.manual_seed(seed)
quantizer = VectorQuant(4, 512, kmeans_init=False)
optimizer = torch.optim.AdamW(quantizer.parameters(), 1e-3)
hit, use = torch.zeros(512, dtype=torch.bool), []
for step in range(200):
    _, out = quantizer(skewed(2000))
    optimizer.zero_grad()
    out["loss"].backward()
    optimizer.step()
    hit[out["q"]] = True
    use.append(out["used"].item())
assert hit.all()
plt.figure(figsize=(5, 2.5))
plt.plot(use)
plt.xlabel("step")
plt.ylabel("share of codes hit");

# %% [markdown]
# Padding is not there: the masked positions hold nonsense, and nothing of it is seen.

# %%
z, mask = torch.randn(3, 10, 4), torch.arange(10) < torch.tensor([[10], [4], [7]])
quantizer.eval()
(clean, told), (dirty, told_dirty) = (quantizer(torch.where(mask[..., None], z, padding), mask)
                                      for padding in (0.0, 1e6))
assert torch.equal(clean, dirty) and told["loss"] == told_dirty["loss"]
assert len(told["q"]) == mask.sum()


# %% [markdown]
# ## Encoder and decoder
#
# The *conditional* tokenizer looks at the whole jet: encoder and decoder are stacks of NormFormer blocks, self-attention between layer norms.
# A block starts as the identity, since the norm before attention and the last layer of the MLP start at zero. There is no
# positional encoding: a jet is a set. The *unconditional* tokenizer looks at each constituent alone: three hidden layers.
# Both take and give `(B, L, features)`.

# %%
#| export
class NormFormerBlock(nn.Module):
    "Self-attention and an MLP, each between layer norms and with a bypass; at first the identity."

    def __init__(self, width: int, heads: int, dropout: float = 0.0):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm1 = nn.LayerNorm(width)
        self.qkv = Linear(width, 3 * width)
        self.out = Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.LayerNorm(width), Linear(width, width), nn.SiLU(),
                                 nn.Dropout(dropout), Linear(width, width))
        last = self.mlp[-1]
        nn.init.xavier_uniform_(self.qkv.weight)
        for zero in (self.qkv.bias, self.out.bias, self.norm1.weight, last.weight, last.bias):
            nn.init.zeros_(zero)

    def forward(self, x, mask):  # (B, L, W), (B, L) bool
        B, L, W = x.shape
        qkv = self.qkv(self.norm1(x)).view(B, L, 3, self.heads, -1)  # (B, L, 3, H, W/H)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, H, L, W/H) each
        attended = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask[:, None, None, :], dropout_p=self.dropout * self.training)
        x = x + self.norm2(self.out(attended.transpose(1, 2).reshape(B, L, W)))
        return x + self.mlp(x)


class NormFormer(nn.Module):
    "Linear, `blocks` NormFormer blocks, linear: (B, L, n_in) → (B, L, n_out)."

    def __init__(self, n_in: int, n_out: int, width: int, blocks: int, heads: int, dropout=0.0):
        super().__init__()
        self.project_in = Linear(n_in, width)
        self.blocks = nn.ModuleList([NormFormerBlock(width, heads, dropout) for _ in range(blocks)])
        self.project_out = Linear(width, n_out)

    def forward(self, x, mask):
        x = self.project_in(x)
        for block in self.blocks:
            x = block(x, mask)
        return self.project_out(x)


class MLP(nn.Sequential):
    "Each position by itself, `layers` hidden layers with ReLU: (B, L, n_in) → (B, L, n_out)."

    def __init__(self, n_in: int, n_out: int, width: int, layers: int = 3):
        sizes = [n_in, *[width] * layers]
        hidden = [part for pair in zip(sizes, sizes[1:]) for part in (Linear(*pair), nn.ReLU())]
        super().__init__(*hidden, Linear(sizes[-1], n_out))

    def forward(self, x, mask=None):
        return super().forward(x)


# %%
torch.manual_seed(seed)
block, x = NormFormerBlock(64, 8), torch.randn(3, 10, 64)
assert torch.equal(block(x, mask), x)
x = torch.randn(3, 10, 3)
assert NormFormer(3, 4, 32, 2, 4)(x, mask).shape == MLP(3, 4, 32)(x).shape == (3, 10, 4)


# %% [markdown]
# ## The VQ-VAE
#
# Features, encoder, quantizer, decoder. Three scaled features enter and leave: $\ln p_T - 1.8$, $3\,\eta_\mathrm{rel}$, $3\,\phi_\mathrm{rel}$.

# %%
#| export
class VQVAE(PretrainedMixin, nn.Module, tags=["jets", "tokenizer"]):
    "A tokenizer that learns; by default the paper's, conditional (section II B, appendix A 1)."

    def __init__(
        self, codebook_size: int = 512,
        conditional: bool = True,  # sees the whole jet, or (unconditional) one constituent
        width: int = 128, blocks: int = 4,  # of encoder and decoder each; or of the MLP's layers
        heads: int = 8,
        latent: int = 4,  # components of a code
        dropout: float = 0.0,
        alpha: float = 10.0,  # weight of the quantizer's loss
        beta: float = 0.9, sync_nu: float = 1.0, affine_lr: float = 2.0,  # of `VectorQuant`
        replace_freq: int = 10, kmeans_init: bool = True,
        quantizer: str = "omnijet",  # or "vqtorch": the original, where it is installed
        pt_power: float = 0.0,  # a constituent counts in the training as p_T^pt_power
        pt_shift: float = 1.8, angle_factor: float = 3.0,  # of `FeatureScaling`
    ):
        super().__init__()
        if width % heads and conditional:
            raise OmnijetError(f"width is {width}, expected a multiple of heads ({heads})")
        if quantizer not in ("omnijet", "vqtorch"):
            raise OmnijetError(f"quantizer is {quantizer!r}, expected omnijet or vqtorch")
        if quantizer == "vqtorch" and pt_power:
            raise OmnijetError(f"pt_power is {pt_power}, expected 0 (vqtorch knows no weights)")
        stack = NormFormer if conditional else MLP
        sizes = (width, blocks, heads, dropout)[:4 if conditional else 2]
        self.codebook_size, self.conditional = codebook_size, conditional
        self.alpha, self.pt_power = alpha, pt_power
        self.scaling = FeatureScaling(pt_shift, angle_factor)
        self.encoder = stack(len(FEATURES), latent, *sizes)
        self.quantizer = (VectorQuant if quantizer == "omnijet" else _vqtorch())(
            feature_size=latent, num_codes=codebook_size, beta=beta, sync_nu=sync_nu,
            affine_lr=affine_lr, replace_freq=replace_freq, kmeans_init=kmeans_init)
        self.decoder = stack(latent, len(FEATURES), *sizes)

    def forward(self, x, mask, weight=None):  # (B, L, 3) scaled features, (B, L) bool, (B, L)
        "The reconstruction (B, L, 3) in scaled features, and what the quantizer says."
        z_q, quantized = self.quantizer(self.encoder(x, mask), mask, weight)
        return self.decoder(z_q, mask), quantized


def _vqtorch():
    "The original quantizer behind the call of ours."
    try:
        from vqtorch.nn import VectorQuant as Original
    except ImportError as error:
        raise OmnijetError("quantizer 'vqtorch': pip install omnijet[vqtorch]") from error

    class Vqtorch(Original):
        def forward(self, z, mask, weight=None):
            z_q, out = super().forward(z[mask][None])  # (1, N, F): no padding
            q = out["q"].reshape(-1)
            hits, usage = _usage(q, self.num_codes)
            z_q = torch.zeros_like(z).masked_scatter(mask[..., None], z_q)
            return z_q, {"q": q, "loss": out["loss"], "replaced": hits.new_zeros(()), **usage}

    return partial(Vqtorch, dim=-1)


# %% [markdown]
# The loss of a constituent with scaled features $x$ and their reconstruction $\hat x$ is that of the paper's appendix A 1,
#
# $$\mathcal L = \|x - \hat x\|^2 + \alpha\left(\beta\,\|\mathrm{sg}[z] - e\|^2 + (1-\beta)\,\|z - \mathrm{sg}[e]\|^2\right), \tag{A1}$$
#
# the bracket being the quantizer's own loss, equation (2). It is averaged over constituents; in the paper all of these are equal. But the soft are many and
# take most codes, while the mass hangs on the few that are hard: with `pt_power` = γ a constituent counts as $p_T^\gamma$, in both parts of the loss and
# where codes are placed.

# %%
#| export
@patch
def loss(self: VQVAE, batch: dict) -> dict:  # x (B, L, 3) in GeV and radians, mask (B, L)
    "Equation A1, its parts, and what happens in the codebook. Weights are p_T^`pt_power`."
    x, mask = self.scaling.scale(batch["x"]), batch["mask"]
    weight = (self.pt_power * x[..., 0]).exp() if self.pt_power else None
    again, quantized = self(x, mask, weight)
    weight = None if weight is None else weight[mask].float()
    reconstruction = _mean_square(again[mask].float(), x[mask].float(), weight)
    return {
        "loss": reconstruction + self.alpha * quantized["loss"], "weight": mask.sum(),
        "reconstruction": reconstruction.detach(), "quantizer": quantized["loss"].detach(),
        "perplexity": quantized["perplexity"], "codes_used": quantized["used"],
        "codes_replaced": quantized["replaced"],
    }


# %%
jets = sample_jets(max_jets=20)
torch.manual_seed(seed)
tokenizer = VQVAE(codebook_size=512, width=32, blocks=2, heads=4)
batch = next(batches(Ragged.from_jets(jets)))
told = tokenizer.eval().loss(batch)
assert torch.isclose(told["loss"], told["reconstruction"] + 10 * told["quantizer"])
{name: round(float(value.detach()), 3) for name, value in told.items()}


# %% [markdown]
# ## From jets to tokens and back
#
# `encode` and `decode` work on awkward arrays, in batches of jets of similar length. What no tokenizer can mean is refused by name.

# %%
#| export
def _checked(sequences: Ragged, wrong, found, expected) -> Ragged:
    "Sequences of 1 … 128 constituents of which none is `wrong`; `found` says what one is."
    lengths = sequences.lengths
    odd = (lengths < 1) | (lengths > MAX_CONSTITUENTS)
    if odd.any():
        jet = odd.argmax()
        raise OmnijetError(f"jet {jet} has {lengths[jet]} constituents, "
                           f"expected 1 … {MAX_CONSTITUENTS} ({odd.sum()} such jets)")
    if wrong.any():
        entry = wrong.argmax()
        jet = np.searchsorted(sequences.offsets, entry, side="right") - 1
        raise OmnijetError(f"jet {jet}, constituent {entry - sequences.offsets[jet]}: "
                           f"{found(entry)}, expected {expected} ({wrong.sum()} such)")
    return sequences


def _constituents(jets) -> Ragged:
    "The constituents of jets, or constituents themselves, end to end, checked."
    if "constituents" not in ak.fields(jets):
        jets = ak.zip({"constituents": jets}, depth_limit=1)
    fields = ak.fields(jets["constituents"])
    missing = ", ".join(name for name in FEATURES if name not in fields)
    if missing:
        raise OmnijetError(f"constituents have no field {missing} (have: {', '.join(fields)})")
    sequences = Ragged.from_jets(jets)
    x = sequences.content
    found = "pt = {:g} GeV, eta_rel = {:g}, phi_rel = {:g}".format
    wrong = ~np.isfinite(x).all(axis=1) | (x[:, 0] <= 0)
    return _checked(sequences, wrong, lambda i: found(*x[i]), "finite numbers and pt > 0")


def _tokens(tokens, codebook_size) -> Ragged:
    "Tokens (n, var) end to end, checked."
    tokens = ak.Array(tokens)
    try:
        sequences = Ragged.from_tokens(ak.zip({"tokens": tokens}, depth_limit=1))
        x, given = sequences.content, ak.to_numpy(ak.flatten(tokens))
    except (TypeError, ValueError) as error:
        raise OmnijetError(f"tokens are of type {tokens.type}, expected lists of ints") from error
    wrong = (x < 0) | (x >= codebook_size) | (x != given)
    return _checked(sequences, wrong, lambda i: f"token {given[i]}", f"0 … {codebook_size - 1}")


# %%
#| export
@patch
@torch.inference_mode()
def _batched(self: VQVAE, function, sequences, batch_size, progress) -> Ragged:
    "Rows (N, …) that `function(x, mask)` gives for real positions; nothing learns meanwhile."
    rows, order, training = [], [], self.training
    batch_size = as_number(batch_size, "batch_size", low=1)
    where = next(self.parameters()).device
    self.eval()
    try:
        for batch in batches(sequences, batch_size, device=where, progress=progress):
            rows.append(function(batch["x"], batch["mask"]).cpu().numpy())
            order.append(batch["index"].cpu().numpy())
    finally:
        self.train(training)
    if not order:
        return Ragged(np.zeros(0), [0])
    order = np.concatenate(order)
    offsets = np.concatenate([[0], np.cumsum(sequences.lengths[order])])
    return Ragged(np.concatenate(rows), offsets)[np.argsort(order)]


@patch
def encode(
    self: VQVAE, jets,  # jets, or their constituents alone; 1 … 128 each
    batch_size: int = 128, progress: bool = False,  # more jets suit a GPU
) -> ak.Array:  # (n, var) int64, 0 … codebook_size − 1
    "A token for each constituent. `OmnijetError` for jets that are empty, too long or not finite."
    def codes(x, mask):  # (B, L, 3), (B, L) -> (N,)
        return self.quantizer(self.encoder(self.scaling.scale(x), mask), mask)[1]["q"]

    sequences = _constituents(jets)
    tokens = self._batched(codes, sequences, batch_size, "encode" if progress else None)
    return ak.unflatten(tokens.content.astype(np.int64), sequences.lengths)


@patch
def decode(
    self: VQVAE, tokens,  # (n, var) ints, 0 … codebook_size − 1
    batch_size: int = 128, progress: bool = False,
) -> ak.Array:  # (n, var) records {pt, eta_rel, phi_rel}, GeV and radians
    "The constituents that tokens stand for. `OmnijetError` for tokens outside the codebook."
    def constituents(q, mask):  # (B, L), (B, L) -> (N, 3)
        z_q = F.embedding(q, self.quantizer.get_codebook()) * mask[..., None]
        return self.scaling.unscale(self.decoder(z_q, mask))[mask]

    sequences = _tokens(tokens, self.codebook_size)
    decoded = self._batched(constituents, sequences, batch_size, "decode" if progress else None)
    return Ragged(decoded.content.reshape(-1, 3), sequences.offsets).to_constituents()


# %% [markdown]
# Without training the codes mean nothing yet, but the rules hold: a jet's tokens do not depend on what else is in the batch.

# %%
for parameter in tokenizer.parameters():  # away from the identity
    parameter.data += 0.1 * torch.randn_like(parameter)
tokens = tokenizer.encode(jets)
one_by_one = [tokenizer.encode(jets[i:i + 1]) for i in range(len(jets))]
assert ak.all(tokens == ak.concatenate(one_by_one))
decoded = tokenizer.decode(tokens)
assert ak.all(ak.num(decoded) == ak.num(jets.constituents))
assert decoded.fields == jets.constituents.fields
tokens[0, :10].tolist(), decoded[0, 0].tolist()


# %% [markdown]
# ## Bins
#
# The simplest tokenizer: each scaled feature is cut into equal bins, a constituent's token is the number of its cell. With $21^3$ cells this needs as many tokens as
# the largest codebook here, with $40^3$ eight times as many.

# %%
#| export
class BinnedTokenizer(PretrainedMixin, tags=["jets", "tokenizer"]):
    "Linear bins in the scaled features, decoded to their centres (section III A). No learning."

    def __init__(
        self, bins: tuple = (21, 21, 21),  # of ln p_T, eta_rel, phi_rel
        edges: tuple = ((-3.0, 5.0), (-2.4, 2.4), (-2.4, 2.4)),  # (low, high) of these, scaled
        pt_shift: float = 1.8, angle_factor: float = 3.0,  # of `FeatureScaling`
    ):
        numbers = [as_number(n, "bins", low=1) for n in np.array(bins, object).ravel()]
        ends = [as_number(x, "edges", whole=False) for x in np.array(edges, object).ravel()]
        if len(numbers) != 3 or len(ends) != 6 or (np.diff(ends)[::2] <= 0).any():
            raise OmnijetError(f"bins {bins} and edges {edges}: expected three numbers of bins "
                               "and three pairs (low, high)")
        self.codebook_size = as_number(math.prod(numbers), "product of bins", high=2**31 - 1)
        self.bins, self.edges = np.array(numbers), np.reshape(ends, (3, 2))
        self.scaling = FeatureScaling(pt_shift, angle_factor)
        self.out_of_range = 0  # constituents of the last `encode` that edge bins took from outside

    @classmethod
    def fit(
        cls, jets: ak.Array, bins: tuple = (21, 21, 21),
        quantiles: tuple = (0.001, 0.999),  # of each scaled feature, where the outer edges lie
        **scaling,  # of `FeatureScaling`
    ):
        "Bins whose edges are quantiles of jets."
        features = cls(bins, **scaling).scaling.scale(_constituents(jets).content.astype(float))
        shares = [as_number(q, "quantiles", 0, 1, whole=False) for q in quantiles]
        return cls(bins, np.quantile(features, shares, axis=0).T, **scaling)

    def encode(self, jets, batch_size=None, progress=False) -> ak.Array:
        "Tokens (n, var) of jets, 0 … codebook_size − 1; the same errors as `VQVAE.encode`."
        sequences = _constituents(jets)
        low, high = self.edges.T
        features = self.scaling.scale(sequences.content.astype(float))
        place = (features - low) / (high - low)  # (N, 3), 0 … 1 within edges
        self.out_of_range = int(((place < 0) | (place > 1)).any(axis=1).sum())
        cell = np.clip(np.floor(place * self.bins), 0, self.bins - 1).astype(np.int64)
        return ak.unflatten(np.ravel_multi_index(cell.T, self.bins), sequences.lengths)

    def decode(self, tokens, batch_size=None, progress=False) -> ak.Array:
        "Centres of bins as constituents {pt, eta_rel, phi_rel}; the same errors as `VQVAE.decode`."
        sequences = _tokens(tokens, self.codebook_size)
        cell = np.stack(np.unravel_index(sequences.content, self.bins), axis=1)  # (N, 3)
        low, high = self.edges.T
        centre = self.scaling.unscale(low + (cell + 0.5) / self.bins * (high - low))
        return Ragged(centre.astype(np.float32), sequences.offsets).to_constituents()


def load_tokenizer(name, map_location="cpu", **hub):  # of `PretrainedMixin.from_pretrained`
    "Any saved tokenizer, `VQVAE` or `BinnedTokenizer`; a tokenizer itself is given back."
    if not isinstance(name, (str, Path)):
        if hasattr(name, "encode") and hasattr(name, "decode"):
            return name
        raise OmnijetError(f"{type(name).__name__} is no tokenizer, expected one, or its name")
    folder = find_pretrained(name, **hub)
    kinds = {"VQVAE": VQVAE, "BinnedTokenizer": BinnedTokenizer}
    return kinds[read_config(folder, kinds)["kind"]].from_pretrained(folder, map_location)


# %%
binned = BinnedTokenizer.fit(jets, bins=(21, 21, 21), quantiles=(0, 1))
tokens = binned.encode(jets)
assert binned.codebook_size == 9261 and ak.max(tokens) < 9261 and binned.out_of_range == 0
half_bin = np.diff(binned.edges)[1, 0] / 21 / 2 / 3
assert ak.max(abs(binned.decode(tokens).eta_rel - jets.constituents.eta_rel)) < 1.001 * half_bin
assert ak.all(binned.encode(binned.decode(tokens)) == tokens)
narrow = BinnedTokenizer.fit(jets)
narrow.encode(jets)
assert narrow.out_of_range > 0
print(f"{narrow.out_of_range} of {ak.sum(ak.num(jets.constituents))} constituents "
      "lie outside the 0.1 % … 99.9 % quantiles")


# %% [markdown]
# ## Saved and loaded
#
# Both kinds are saved and loaded as [chapter models](00f_models.ipynb) has it; `load_tokenizer` takes either.

# %%
with tempfile.TemporaryDirectory() as folder:
    for saved in (tokenizer, binned):
        saved.save_pretrained(folder)
        again = load_tokenizer(folder)
        assert type(again) is type(saved)
        assert ak.all(again.encode(jets) == saved.encode(jets))

# %% [markdown]
# The authors' published weights become a `VQVAE`; how their checkpoint is read without running code in it is told in [chapter models](00f_models.ipynb).

# %%
#| export
_NAMES = {  # of the published code, and here
    "input_projection": "encoder.project_in", "encoder_normformer.blocks": "encoder.blocks",
    "latent_projection_in": "encoder.project_out", "latent_projection_out": "decoder.project_in",
    "decoder_normformer.blocks": "decoder.blocks", "output_projection": "decoder.project_out",
    "vqlayer": "quantizer", "attn.in_proj_": "qkv.", "attn.out_proj": "out",
}


@patch(cls_method=True)
def from_gabbro(cls: VQVAE, path):  # a Lightning checkpoint of the authors' VQ-VAE
    "The tokenizer of a published checkpoint; `OmnijetError` for another, and for code to execute."
    found, state = read_gabbro(path)
    kind, known = found.get("model_type"), ("VQVAENormFormer", "Transformer", "MLP")
    if kind not in known:
        raise OmnijetError(f"{path}: model_type is {kind!r}, expected {' or '.join(known)}")
    names = [("model.", ""), *_NAMES.items()]
    weights = {reduce(lambda key, pair: key.replace(*pair), names, key): value
               for key, value in state.items()}
    try:
        model, quantizer = found["model_kwargs"], found["model_kwargs"]["vq_kwargs"]
        same = ("beta", "sync_nu", "affine_lr", "replace_freq", "kmeans_init")
        settings = {key: quantizer[key] for key in same if key in quantizer}
        settings |= {"codebook_size": quantizer["num_codes"], "latent": model["latent_dim"],
                     "alpha": model["alpha"], "conditional": kind != "MLP"}
        if kind == "MLP":
            layers = model["encoder_layers"]
            settings |= {"width": layers[0], "blocks": len(layers)}
        else:
            settings |= {"width": model["hidden_dim"], "blocks": model["num_blocks"],
                         "heads": model["num_heads"]}
        with torch.device("meta"):  # sizes alone reserve no memory
            plan = cls(**settings)
    except Exception as error:
        raise OmnijetError(f"{path}: model_kwargs do not describe a {kind} ({error!r})") from error
    check_shapes(plan, weights, path)
    tokenizer = cls(**settings).eval()
    tokenizer.load_state_dict(weights)
    return tokenizer


# %%
published = {  # as their code names things
    "model_type": "MLP",
    "model_kwargs": {"encoder_layers": [16, 16], "latent_dim": 4, "alpha": 10,
                     "vq_kwargs": {"num_codes": 64}},
}
twin = VQVAE(64, conditional=False, width=16, blocks=2)
with tempfile.TemporaryDirectory() as folder:
    weights = {f"model.{key.replace('quantizer', 'vqlayer')}": value
               for key, value in twin.state_dict().items()}
    torch.save({"hyper_parameters": published, "state_dict": weights}, f"{folder}/last.ckpt")
    assert ak.all(VQVAE.from_gabbro(f"{folder}/last.ckpt").encode(jets) == twin.encode(jets))

# %% [markdown]
# ## Files of tokens
#
# One file of tokens for each file of jets, with the label and the id of each jet. Jets are read a batch at a time, so that memory does not grow with the files.

# %%
#| export
MIRRORS = [("eta_rel",), ("phi_rel",), ("eta_rel", "phi_rel")]  # signs that an image has turned


def _holds_tokens(path) -> bool:
    with suppress(OmnijetError):  # no file, or not readable
        return {"tokenizer", "codebook_size", "mirror"} <= read_metadata(path).keys()
    return False


def _places(data, out) -> dict:  # {file of tokens: its file of jets}
    "Where tokens go; `OmnijetError` where they would be among the jets, or in place of others."
    given = [Path(one).resolve() for one in (data if isinstance(data, (list, tuple)) else [data])]
    home, places = Path(out).resolve(), {}
    for file in jet_files(data):
        path = Path(out, f"{file.stem}.parquet")
        if home == file.resolve().parent or any(map(home.is_relative_to, given)):
            raise OmnijetError(f"{path}: tokens would be among the jets, choose another folder")
        if path.exists() and not _holds_tokens(path):
            raise OmnijetError(f"{path}: is there and not of `omnijet tokenize`, nor overwritten")
        other = places.setdefault(path, file)
        if other != file:
            raise OmnijetError(f"{file}: its tokens and those of {other} would have one name")
    return places


def tokenize_files(
    tokenizer,  # a tokenizer, or what `load_tokenizer` takes
    data,  # a file, folder or glob of JetClass columns, or a list of these
    out,  # folder; a file of tokens has the name of its file of jets
    batch_size: int = None,  # jets; None: 128 on a CPU, whose caches they fit, 1024 elsewhere
    mirror: tuple = (),  # turn the sign of these: eta_rel, phi_rel
    progress: bool = True,
) -> list:  # the files written
    "Tokenize files of jets, or their mirror images. `OmnijetError` where one cannot be read."
    batch_size = as_number(batch_size, "batch_size", low=1, optional=True)
    mirror = sorted(mirror)
    if tuple(mirror) not in [(), *MIRRORS]:
        raise OmnijetError(f"mirror is {mirror}, expected one of {MIRRORS}")
    name = str(tokenizer) if isinstance(tokenizer, (str, Path)) else type(tokenizer).__name__
    tokenizer, places, written = load_tokenizer(tokenizer, device()), _places(data, out), []
    make_folder(out)
    for path, file in progress_bar(places.items(), progress, desc="tokenize", unit="file"):
        parts = []
        for jets in iter_jets(file):
            seen = {name: jets.constituents[name] for name in FEATURES}
            seen |= {name: -seen[name] for name in mirror}
            size = batch_size or (128 if device().type == "cpu" else 1024)
            tokens = tokenizer.encode(ak.zip(seen), batch_size=size)
            parts.append((tokens, ak.to_numpy(jets.label), ak.to_numpy(jets.id)))
        whole = Path(out, f"{process_of(file)}.parquet")  # of a process, as omnijet 0.1 wrote them
        stale = [whole] if whole not in places else []
        if parts:
            tokens, label, id = map(ak.concatenate, zip(*parts))
            about = {"codebook_size": tokenizer.codebook_size, "tokenizer": name}
            write_tokens(tokens, path, label, id, mirror=mirror, **about)
            written.append(path)
        else:
            warnings.warn(f"{file}: no jets to tokenize, left out", stacklevel=2)
            stale.append(path)
        for old in filter(_holds_tokens, stale):
            old.unlink()
    if not written:
        raise OmnijetError(f"{data}: no jets to tokenize")
    return written


# %%
with tempfile.TemporaryDirectory() as folder:
    tops = jet_files(sample_folder(), "TTBar")
    files = tokenize_files(binned, tops, folder, progress=False)
    table = read_tokens(folder)
assert [file.stem for file in files] == [file.stem for file in tops]
assert ak.all(table.tokens == binned.encode(read_jets(tops)))
assert set(table.label) == {CLASSES.index("TTBar")}


# %% [markdown]
# ## Training
#
# The tokenizers of this run, by name: `conditional-8192`, `unconditional-512`, `binned-21` (21 bins in each of the three features). The unconditional one is
# the paper's in any run, three layers of 128.

# %%
#| export
def new_tokenizer(
    name: str,  # conditional-K, unconditional-K or binned-N
    jets: ak.Array = None,  # for the edges of bins
    **settings,  # of `VQVAE`; the sizes of an unconditional one are always the same
):
    "An untrained tokenizer of this name; `OmnijetError` for a name that says nothing."
    if not re.fullmatch("(conditional|unconditional|binned)-[1-9][0-9]*", str(name)):
        expected = "expected conditional-K, unconditional-K or binned-N"
        raise OmnijetError(f"tokenizer {name!r}: {expected}")
    kind, n = name.split("-")
    if kind == "binned":
        return BinnedTokenizer.fit(jets, [int(n)] * 3)
    if kind == "unconditional":
        settings |= {"conditional": False, "width": 128, "blocks": 3}
    return VQVAE(int(n), **settings)


def mass_resolution(tokenizer, jets: ak.Array, **settings) -> dict:  # of `statistics.resolution`
    "What tokens do to the jet mass (reconstructed − original, GeV; section III A), and codes_used."
    tokens = tokenizer.encode(jets)
    decoded = ak.zip({"constituents": tokenizer.decode(tokens)}, depth_limit=1)
    difference = ak.to_numpy(jet_mass(decoded) - jet_mass(jets))
    used = len(np.unique(ak.to_numpy(ak.flatten(tokens)))) / tokenizer.codebook_size
    return {**resolution(difference, **settings), "codes_used": used}


# %%
tops = sample_jets(classes="TTBar", max_jets=200)
fine, coarse = (mass_resolution(new_tokenizer(name, tops), tops, bootstrap=20)
                for name in ("binned-40", "binned-10"))
assert fine["half_width"] < coarse["half_width"]
print(f"half-width of the mass difference, t → bqq′: {fine['half_width']:.1f} GeV with 40³ bins, "
      f"{coarse['half_width']:.1f} GeV with 10³")

# %% [markdown]
# A minute of training on the sample that comes with the package would show the loss falling; a few seconds do, too. The tokenizer after training knows more than before.

# %%
torch.manual_seed(seed)
toy = new_tokenizer("conditional-64", width=32, blocks=1, heads=2)
few = Ragged.from_jets(sample_jets(max_jets=60))
config = TrainingConfig(epochs=4, batch_size=32, lr=3e-3, seed=seed)
history = train(toy, few, config=config, progress=False)
assert history[-1]["train_loss"] < 0.7 * history[0]["train_loss"]
[f"{row['train_loss']:.3f}" for row in history]

# %% [markdown]
# ## The experiment
#
# The jets of this run, in the proportions in which they were simulated; the paper trains its tokenizers on all ten classes together, as here.

# %%
#| eval: false
from omnijet.observables import color, compare, save_figure, style

style()


def jets_of(sequences):
    return ak.zip({"constituents": sequences.to_constituents()}, depth_limit=1)


train_files, val_files, test_files = (run_path(run_dir, "data", split, chapter="00b_simulation")
                                      for split in ("train", "val", "test"))
data = training_data(train_files, max_jets=tokenizer_jets["train"], seed=seed)
val = training_data(val_files, max_jets=tokenizer_jets["val"], seed=seed)
in_memory = isinstance(data, Ragged)  # else streamed, and some jets stand for all of them
some_jets = jets_of(data) if in_memory else read_jets(train_files, max_jets=100_000)
val_tops = jets_of(val[val.extras["label"] == CLASSES.index("TTBar")])
print(f"{len(data) if in_memory else data.sequences} jets to train, {len(val)} to validate "
      f"({len(val_tops)} of t → bqq′)")

# %% [markdown]
# `tokenizer_training` goes whole into the `TrainingConfig`, and that is all that [`train`](00e_training.ipynb) hears: its AdamW follows `config.learning_rate`, which rises
# from `lr_start` to `lr` and falls to `lr_end`, with the last steps almost at rest: the codebook settles. After each epoch the validation jets are
# tokenized and decoded, and the mass of the t → bqq′ among them is compared. The weights kept are those of the best validation *reconstruction*: the quantizer's part of the loss
# is small while the encoder's outputs still lie close together, and says nothing about quality.

# %%
#| eval: false
config = TrainingConfig(**tokenizer_training, schedule="one-cycle", warmup=0.1,
                        monitor="reconstruction", seed=seed)
shelf = {"conditional-512": "omnijet/tokenizer-512",
         "conditional-8192": "omnijet/tokenizer-8192"} if shipped else {}
after_epoch = partial(mass_resolution, jets=val_tops, bootstrap=0)
trained, histories = {}, {}
for name in tokenizers:
    folder = Path(run_dir, "tokenizers", name)
    torch.manual_seed(seed)
    if name in shelf:
        model = load_tokenizer(shelf[name])
    else:
        model = new_tokenizer(name, some_jets, **tokenizer_model)
        if isinstance(model, VQVAE):
            histories[name] = train(model, data, val, config, out=folder / "training",
                                    on_epoch=after_epoch)
    model.save_pretrained(folder)
    trained[name] = load_tokenizer(folder)

# %% [markdown]
# Loss, mass resolution and codebook use over the training.

# %%
#| eval: false
fig, axes = plt.subplots(1, 3, figsize=(14, 4))  # empty where nothing was trained
for name, history in histories.items():
    epoch = [row["epoch"] + 1 for row in history]
    axes[0].plot(epoch, [row["train_loss"] for row in history], "o--", color=color(name))
    for ax, key in zip(axes, ["val_loss", "half_width", "codes_used"]):
        ax.plot(epoch, [row[key] for row in history], "o-", color=color(name), label=name)
axes[0].set(yscale="log", ylabel="loss (dashed: training)")
axes[1].set(yscale="log", ylabel=r"mass resolution, $t \to bqq'$ [GeV]")
axes[2].set(ylim=(0, 1.05), ylabel=f"share of codes in {len(val_tops):,} jets")
for ax in axes:
    ax.set_xlabel("epoch")
    ax.xaxis.get_major_locator().set_params(integer=True)
if histories:
    axes[2].legend(loc="lower right")
fig.tight_layout()
save_figure(fig, run_dir, "fig01a_tokenizer_training");

# %% [markdown]
# ## Tokens for the next chapters
#
# Everything that was simulated, as tokens of `backbone_tokenizer`. Nature does not tell $\eta$ from $-\eta$, nor $\phi$ from $-\phi$, but a model that reads codes
# cannot know: so the training jets' mirror images become tokens, too, for [pre-training](03_gpt.ipynb).

# %%
#| eval: false
chosen = Path(run_dir, "tokenizers", backbone_tokenizer)
for split in ("train", "val", "test"):
    files = tokenize_files(chosen, Path(run_dir, "data", split), Path(run_dir, "tokens", split))
    print(f"{split}: {len(files)} files")
for mirror in MIRRORS if backbone_mirrors else []:
    folder = Path(run_dir, "tokens", "_".join(["train", *mirror]))
    tokenize_files(chosen, train_files, folder, mirror=mirror)

# %% [markdown]
# ## What tokens look like
#
# One top jet: the tokens of its hardest constituents, and what a tokenizer makes of all of them (area proportional to $p_T$): the smaller learned codebook, the one
# that the next chapters read, the one without context, and bins.

# %%
#| eval: false
highlights = ["conditional-512", backbone_tokenizer, "unconditional-512", "binned-21"]
highlights = [name for name in dict.fromkeys(highlights) if name in trained]
test_tops = read_jets(test_files, classes="TTBar", max_jets=5000)
jet = test_tops[:1]
original, tokens = jet.constituents[0], trained[backbone_tokenizer].encode(jet)[0]
shown = min(len(original), 30)
half = 1.1 * max(ak.max(abs(original.eta_rel)), ak.max(abs(original.phi_rel)))
fig, (first, *others) = plt.subplots(1, 1 + len(highlights), figsize=(4 * (1 + len(highlights)), 4))
first.bar(np.arange(shown), original.pt[:shown], color=color(backbone_tokenizer), alpha=0.4)
for i in range(shown):
    first.text(i, original.pt[i], f" {tokens[i]}", rotation=90, ha="center", va="bottom",
               fontsize=8)
first.set(title=f"tokens of {backbone_tokenizer}", xlabel="constituent", ylabel="$p_T$ [GeV]",
          yscale="log", ylim=(0.5 * original.pt[shown - 1], 5 * original.pt[0]))
for ax, name in zip(others, highlights):
    decoded = trained[name].decode(trained[name].encode(jet))[0]
    ax.scatter(original.eta_rel, original.phi_rel, s=3 * original.pt, label="original",
               facecolors="none", edgecolors="black")
    ax.scatter(decoded.eta_rel, decoded.phi_rel, s=3 * decoded.pt, label=name,
               color=color(name), alpha=0.5)
    ax.set(xlabel=r"$\eta_\mathrm{rel}$", ylabel=r"$\phi_\mathrm{rel}$",
           xlim=(-half, half), ylim=(-half, half))
    ax.legend(markerscale=0.5)
fig.tight_layout()
save_figure(fig, run_dir, "fig01b_tokens_of_a_jet");

# %% [markdown]
# The same code may mean different constituents in different jets, if the tokenizer is conditional: each colour is one code, each point one jet in which it occurs.
# How far codes move stands above (the median over codes of the standard deviation); after a short training that is little.
# The unconditional decoder has a single answer for a code, the cross.

# %%
#| eval: false
fig, axes = plt.subplots(1, 2, figsize=(10, 4.5), sharey=True)
for ax, kind, marker in zip(axes, ("conditional", "unconditional"), (".", "x")):
    name = next((name for name in trained if name.startswith(kind)), None)
    if name is None:
        continue
    tokens = trained[name].encode(test_tops[:2000])
    decoded, tokens = ak.flatten(trained[name].decode(tokens)), ak.to_numpy(ak.flatten(tokens))
    count = np.bincount(tokens, minlength=trained[name].codebook_size)
    for i, code in enumerate(np.argsort(-count)[:60:10]):
        here = decoded[tokens == code]
        ax.scatter(here.eta_rel, here.pt, marker=marker, color=f"C{i}", alpha=0.5,
                   label=f"code {code}")
    eta, often = ak.to_numpy(decoded.eta_rel).astype(float), count >= 10
    mean, square = (np.bincount(tokens, x, len(count))[often] / count[often] for x in (eta, eta**2))
    moves = np.median(np.sqrt(np.maximum(square - mean**2, 0)))
    ax.set(title=rf"{name}: $\pm${moves:.3f} in $\eta_\mathrm{{rel}}$",
           xlabel=r"$\eta_\mathrm{rel}$", yscale="log", xlim=(-0.8, 0.8))
    ax.legend(fontsize=8)
axes[0].set_ylabel("$p_T$ [GeV]")
fig.tight_layout()
save_figure(fig, run_dir, "fig01c_codes_in_context");

# %% [markdown]
# Mass of the decoded minus mass of the original jet, for t → bqq′: the paper's measure of a tokenizer (section III A). The [next chapter](02_token_quality.ipynb) puts
# numbers on these curves.

# %%
#| eval: false
differences = {}
for name in highlights:
    again = trained[name].decode(trained[name].encode(test_tops))
    decoded = ak.zip({"constituents": again}, depth_limit=1)
    differences[name] = ak.to_numpy(jet_mass(decoded) - jet_mass(test_tops))
fig = compare(differences, bins=(80, -60, 60), ratio=False,
              xlabel=r"$m_\mathrm{reco} - m$ [GeV], $t \to bqq'$")
save_figure(fig, run_dir, "fig01d_mass_difference");

# %% [markdown]
# ## By hand
#
# Every code of the tokenizer that the next chapters read: point at one, or type its number, and see how often it is used, what it becomes and in which jets.

# %%
#| eval: false
from omnijet.widgets import JetBrowser, TokenExplorer

TokenExplorer(chosen)

# %% [markdown]
# Test jets one after the other (arrow keys), their tokens beside them and the reconstruction laid over them.

# %%
#| eval: false
JetBrowser(read_jets(test_files, max_jets=2000), tokenizer=chosen)

# %% [markdown]
# ## Numbers
#
# How much of each vocabulary the training jets use (where they are too many to hold: 100,000 of them).

# %%
#| eval: false
numbers = []
for name, tokenizer in trained.items():
    used = np.unique(ak.to_numpy(ak.flatten(tokenizer.encode(some_jets)))).size
    numbers.append(number("codes_used", used / tokenizer.codebook_size, n_jets=len(some_jets),
                          tokenizer=name))
record(run_dir, "01_vqvae", numbers)
show(numbers)

# %% [markdown]
# **What we learned:** with replacement and weights no code of a learned codebook lies idle, whatever its size, while a quarter of the $21^3$ bins and a third of the
# $40^3$ bins never occur in a jet: learned codes go where constituents are.
# **What is worse than the paper:** context helps less here, for after two passes over 80,000 jets codes move little from jet to jet, and with 512 of them the conditional
# tokenizer keeps the mass only slightly better than the unconditional one (whose large mass shift we do not see either).
# **What to try:** more epochs for the conditional tokenizer, which must learn the context on top of its codes, and a `pt_power` between the paper's 0 and ours.
