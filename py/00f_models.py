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
# # Models
#
# > What all models share: layers, saving, loading, the authors' checkpoints.
#
# A model here is a PyTorch module that can be saved into a folder and loaded from a folder, from the package or from the Hugging Face hub. How is that
# done so that a folder is all one needs, that a broken one is told apart from a good one before it does harm, and that the weights which the paper's
# authors published (section II of the paper, and its appendix A) can be read without running their code?

# %% [markdown]
# ```mermaid
# flowchart LR
#     simulation --> jets
#     files --> jets
#     jets --> tokens --> backbone --> generated(new jets)
#     jets --> observables
#     backbone --> tagger
#     style tokens fill:#ffa90e,color:#111
#     style backbone fill:#ffa90e,color:#111
#     style tagger fill:#ffa90e,color:#111
# ```

# %%
#| default_exp models

reads = []   # chapters whose work this one needs
writes = []  # what it leaves in the run folder

# %% tags=["parameters"]
preset = "smoke"
run_dir = "../runs/smoke"
seed = 1

# %%
#| export
import functools, hashlib, inspect, json, operator, tempfile, typing
from pathlib import Path

import huggingface_hub
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import nn

import omnijet
from omnijet.files import (
    OmnijetError, as_bool, as_number, checksum, make_folder, origin, read_checkpoint, read_weights,
    writing,
)

# %% [markdown]
# ## Matrix products
#
# Nearly all arithmetic of a training is in linear layers. For float32 on CPUs PyTorch calls the BLAS it was built with, which on some processors gives
# half of what they can do; oneDNN, which PyTorch carries for other layers and for bfloat16, gives the rest. `Linear` is `nn.Linear`, same
# weights and names, through oneDNN where that is possible and the product large enough to pay.

# %%
#| export
ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def linear(x, weight, bias=None):  # (…, K), (M, K), (M,) -> (…, M)
    "x · weightᵀ + bias, large float32 products on a CPU through oneDNN."
    fits = x.dtype == weight.dtype == torch.float32 and x.shape[-1] == weight.shape[1]
    if ONEDNN and fits and x.device.type == "cpu" and x.numel() * len(weight) >= 2**20:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return linear(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, slope):  # (…, M)
        x, weight = ctx.saved_tensors
        rows, needed = slope.flatten(0, -2), ctx.needs_input_grad  # (N, M)
        return (linear(slope, weight.T) if needed[0] else None,  # (…, K)
                linear(x.flatten(0, -2).T, rows.T).T if needed[1] else None,
                rows.sum(0) if needed[2] else None)


class Linear(nn.Linear):
    "nn.Linear, its float32 products on CPUs through oneDNN; results differ by rounding only."

    def forward(self, x):  # (…, in_features) -> (…, out_features)
        other = torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling()
        plain = other or x.device.type != "cpu" or x.dim() < 2
        return super().forward(x) if plain else _Linear.apply(x, self.weight, self.bias)


# %%
layer, x = Linear(96, 384), torch.randn(64, 40, 96, requires_grad=True)
inputs = (x, layer.weight, layer.bias)
ours, torchs = (torch.autograd.grad(product(*inputs).square().mean(), inputs)
                for product in (_Linear.apply, F.linear))
for gradient, expected in zip(ours, torchs):
    assert torch.allclose(gradient, expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max()))


# %% [markdown]
# ## Settings
#
# Numbers come from anywhere: a loop over `np.arange`, an array's maximum, a tensor, a word of the command line. A model takes them all, as the kind of number that
# its signature names and in the range in which it means something, and only then builds itself. So what is written into a file is what the model was made with.

# %%
#| export
RANGES = {  # of the numbers that models are made with, by name
    **dict.fromkeys(("codebook_size", "vocabulary_size", "width", "heads", "latent"), {"low": 1}),
    **dict.fromkeys(("alpha", "sync_nu", "affine_lr", "replace_freq"), {"low": 0}),
    **dict.fromkeys(("dropout", "beta"), {"low": 0, "high": 1}),
    "blocks": {"low": 0, "high": 10_000}, "classes": {"low": 0, "high": 10},
    "angle_factor": {"above": 0},
}


def as_json(value, name: str):
    "A setting as JSON keeps it, arrays as lists; `OmnijetError` naming it where that cannot be."
    tolist = operator.methodcaller("tolist")  # of numpy, torch and others
    try:
        return json.loads(json.dumps(value, allow_nan=False, default=tolist))
    except (TypeError, ValueError, AttributeError, RecursionError) as error:
        raise OmnijetError(f"{name} is {value!r}, expected numbers, words or lists") from error


def checked(init):
    "An `__init__` that gets what its signature says: int, float, bool, these or None; in `RANGES`."
    signature = inspect.signature(init)

    @functools.wraps(init)
    def checking(self, *args, **kwargs):
        given, settings = signature.bind(self, *args, **kwargs), {}
        given.apply_defaults()
        for name, value in given.arguments.items():
            parameter = signature.parameters[name]
            kinds = {*typing.get_args(parameter.annotation), parameter.annotation}
            if bool in kinds:
                value = as_bool(value, name)
            elif kinds & {int, float}:
                limits = RANGES.get(name, {}) | {"optional": type(None) in kinds}
                value = as_number(value, name, whole=int in kinds, **limits)
            given.arguments[name] = value
            settings |= value if parameter.kind is parameter.VAR_KEYWORD else {name: value}
        owner = type(self)
        if hasattr(owner, "settings") and owner.settings is PretrainedMixin.settings:
            del settings["self"]
            settings = {name: as_json(value, name) for name, value in settings.items()}
            vars(self).setdefault("_hub_mixin_config", settings)  # of the last in a line of classes
        init(*given.args, **given.kwargs)

    return checking


# %%
class Sized:
    @checked
    def __init__(self, width: int, dropout: float = 0.0):
        self.width, self.dropout = width, dropout


sized = Sized(torch.tensor(8), "0.5")
assert (type(sized.width), sized.width, sized.dropout) == (int, 8, 0.5)
try:
    Sized(8, dropout=2)
except OmnijetError as error:
    message = str(error)
assert message.startswith("dropout is 2")
message


# %% [markdown]
# ## A folder is all one needs
#
# A name is looked up as a folder, then among the models that come with the package, then on the hub.

# %%
#| export
_HUB = """revision cache_dir local_files_only token force_download proxies strict etag_timeout
    endpoint headers user_agent max_workers resume_download""".split()


def find_pretrained(
    name,   # a folder, a shipped model ("omnijet/backbone"), or a name on the hub ("who/what")
    **hub,  # of huggingface_hub's snapshot_download, for a name on the hub
) -> Path:  # a folder with config.json
    "The folder of a saved model; `OmnijetError` that lists the shipped models if there is none."
    for option in hub.keys() - _HUB:
        raise OmnijetError(f"{name}: no option {option} (there are: {', '.join(_HUB)})")
    folder, name = Path(name), str(name)
    if folder.is_dir():
        if not (folder / "config.json").exists():
            raise OmnijetError(f"{name}: no config.json, expected what save_pretrained writes")
        return folder
    shelf = Path(omnijet.__file__).parent / "pretrained"
    shipped = sorted(f"omnijet/{path.parent.name}" for path in shelf.glob("*/config.json"))
    if name in shipped:
        return shelf / folder.name
    reason = "no such folder"
    if name.count("/") == 1 and not name.startswith(("omnijet/", ".", "/", "~")):
        hub["allow_patterns"] = ["config.json", "*.safetensors"]
        hub.pop("strict", None)  # weights must fit in any case
        try:
            return Path(huggingface_hub.snapshot_download(name, **hub))
        except Exception as error:
            told = str(error).partition("\n")[0]
            reason = f"no such folder, and the hub answers {type(error).__name__}: {told}"
    raise OmnijetError(f"{name}: {reason}; models that come with omnijet: {', '.join(shipped)}")


def read_config(folder: Path, kinds) -> dict:  # names of the classes it may be
    "config.json of a saved model; `OmnijetError` if it is another kind of model or not one at all."
    path = Path(folder, "config.json")
    try:
        config = json.loads(path.read_text())
        kind = config.get("kind")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise OmnijetError(f"{path}: not the configuration of a model ({error})") from error
    if kind not in kinds:
        raise OmnijetError(f"{path}: kind is {kind!r}, expected {' or '.join(kinds)}")
    return config


# %%
try:
    find_pretrained("omnijet/no-such-model")
except OmnijetError as error:
    message = str(error)
assert "omnijet/tokenizer-8192" in message
message


# %% [markdown]
# Sizes in config.json are read before the weights, and a wrong one must not reserve the memory of the machine. So the model is first made on PyTorch's device
# `meta`, where tensors have shapes and no content, and compared with the weights. The checksum of the weights stands in config.json: the two belong together.

# %%
#| export
def check_shapes(model, state: dict, path) -> dict:  # the state dict
    "`OmnijetError` that names the first of the weights that do not fit."
    have = {key: tuple(value.shape) for key, value in state.items()}
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    wrong = [key for key in [*expected, *have] if have.get(key) != expected.get(key)]
    if wrong:
        found, right = have.get(wrong[0], "missing"), expected.get(wrong[0], "nothing of this name")
        raise OmnijetError(f"{path}: weights of another architecture: {wrong[0]} is {found}, "
                           f"expected {right} ({len(wrong)} such)")
    return state


def _read_model(cls, folder):
    "The settings in a folder and the weights (none: {}), which fit each other."
    settings = read_config(folder, [cls.__name__])
    facts = settings.pop("origin", None)
    del settings["kind"]
    try:
        with torch.device("meta"):  # sizes alone reserve no memory
            plan = cls.from_settings(settings)
    except Exception as error:
        raise OmnijetError(f"{folder}/config.json: describes no model ({error!r})") from error
    if not isinstance(plan, nn.Module):
        return settings, {}
    path = folder / "model.safetensors"
    weights = check_shapes(plan, read_weights(path), path)
    noted = facts.get("weights") if isinstance(facts, dict) else None
    if noted not in (None, checksum(path)):
        raise OmnijetError(f"{path}: not the weights that config.json came with (sha256 differs)")
    return settings, weights


# %% [markdown]
# `save_pretrained` writes config.json (which class, what its `__init__` was given, how it was trained and with which software) and model.safetensors, reads both back, and
# gives them their names only when they say what the model says.
#
# All of it is a mixin. A class has nothing to write for itself, unless its `__init__` takes something that is no number, word or list: then `settings` and
# `from_settings` say how it becomes one.

# %%
#| export
class PretrainedMixin(
    huggingface_hub.ModelHubMixin, library_name="omnijet", license="mit",
    repo_url="https://github.com/omnijet/omnijet", paper_url="https://arxiv.org/abs/2403.05618",
):
    "`save_pretrained`, `from_pretrained` and, from the hub's mixin, `push_to_hub`."

    def __init_subclass__(cls, **options):  # of the hub's mixin: tags, …
        super().__init_subclass__(**options)
        if "__init__" in vars(cls):
            cls.__init__ = checked(cls.__init__)

    def __new__(cls, *args, **kwargs):  # the hub's drops what JSON cannot write
        return object.__new__(cls)

    def settings(self) -> dict:
        "What `from_settings` needs for an untrained twin: arguments of `__init__`."
        return self._hub_mixin_config or {}

    @classmethod
    def from_settings(cls, settings: dict):
        return cls(**settings)

    def save_pretrained(self, save_directory, **options):  # of the hub's mixin: push_to_hub, …
        "Into a folder, in which an earlier model stays whole until the new one is complete."
        folder = Path(save_directory)
        make_folder(folder)
        if any((folder / name).exists() for name in ("config.json", "model.safetensors")):
            read_config(folder, [type(self).__name__])  # nothing else is overwritten
        with writing(folder), tempfile.TemporaryDirectory(".tmp", ".", folder) as new:
            done = super().save_pretrained(new, **{"repo_id": folder.name, **options})
            for path in sorted(Path(new).iterdir(), reverse=True):  # weights, configuration
                if path.name != "README.md" or not (folder / path.name).exists():
                    path.replace(folder / path.name)
        return done

    def _save_pretrained(self, save_directory):  # an empty folder
        folder = Path(save_directory)
        about = {"training": getattr(self, "training_facts", None), **origin()}
        if isinstance(self, nn.Module):
            state = {name: value.contiguous() for name, value in self.state_dict().items()}
            content = safetensors.torch.save(state)
            (folder / "model.safetensors").write_bytes(content)
            about["weights"] = hashlib.sha256(content).hexdigest()
        settings = {name: as_json(value, name) for name, value in self.settings().items()}
        config = {"kind": type(self).__name__, **settings, "origin": about}
        (folder / "config.json").write_text(json.dumps(config, indent=1))
        if _read_model(type(self), folder)[0] != settings:  # it compares the weights' checksum
            raise OmnijetError(f"{folder}/config.json: reads back as something else")

    @classmethod
    def from_pretrained(cls, name, map_location="cpu", **hub):
        "A saved model: `name` and `hub` as in `find_pretrained`, its weights on `map_location`."
        try:
            torch.empty(0, device=map_location)
        except Exception as error:
            raise OmnijetError(f"map_location is {map_location!r}: {error}") from error
        settings, weights = _read_model(cls, find_pretrained(name, **hub))
        model = cls.from_settings(settings)
        if isinstance(model, nn.Module):
            model.load_state_dict(weights)
            model.to(map_location).eval()
        return model


# %%
class Toy(PretrainedMixin, nn.Module, tags=["example"]):
    def __init__(self, width: int = 4):
        super().__init__()
        self.layer = Linear(3, width)


toy = Toy(width=8)
with tempfile.TemporaryDirectory() as folder:
    toy.save_pretrained(folder)
    assert torch.equal(Toy.from_pretrained(folder).layer.weight, toy.layer.weight)
    config = json.loads(Path(folder, "config.json").read_text())
    wide = {**config, "width": 10**12}  # four terabytes
    Path(folder, "config.json").write_text(json.dumps(wide))
    try:
        Toy.from_pretrained(folder)
    except OmnijetError as error:
        message = str(error).replace(folder, "folder")
assert "layer.weight is (8, 3), expected (1000000000000, 3)" in message
{key: value for key, value in config.items() if key != "origin"}, message

# %% [markdown]
# ## The authors' checkpoints
#
# The published weights are Lightning checkpoints: pickles, which could execute anything while being read. They are read with `weights_only=True`; the few classes that
# their hyper-parameters mention (optimizers, schedules, configuration nodes) are on a list, and inert stand-ins take their place. Anything else is refused by name.

# %%
#| export
_HARMLESS = """functools.partial collections.defaultdict typing.Any
    gabbro.schedulers.lr_scheduler.OneCycleCooldown src.schedulers.lr_scheduler.OneCycleCooldown
    omegaconf.dictconfig.DictConfig omegaconf.listconfig.ListConfig omegaconf.nodes.AnyNode
    omegaconf.base.ContainerMetadata omegaconf.base.Metadata""".split()
_HARMLESS += [f"torch.optim.{name}" for name in
              "adam.Adam adamw.AdamW sgd.SGD radam.RAdam Adam AdamW SGD".split()]
_HARMLESS += [f"torch.optim.lr_scheduler.{name}" for name in
              """ConstantLR LinearLR StepLR ExponentialLR CosineAnnealingLR ReduceLROnPlateau
              OneCycleLR LambdaLR SequentialLR""".split()]


class StandIn:
    "Takes the place of a class named in a pickle: keeps what it is given and does nothing."

    def __init__(self, *args, **kwargs):
        self.state = args

    def __setstate__(self, state):
        self.state = state


def _plain(value):
    "Configuration nodes (omegaconf) as plain dicts, lists and values."
    state = getattr(value, "state", None) if isinstance(value, StandIn) else None
    if isinstance(state, dict):
        value = state.get("_content", state.get("_val", value))
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def read_gabbro(path):  # a Lightning checkpoint -> its hyper-parameters (plain), its state dict
    "What a published checkpoint holds; `OmnijetError` for a class that could execute something."
    checkpoint = read_checkpoint(path, [(StandIn, name) for name in _HARMLESS])
    for key in ("hyper_parameters", "state_dict"):
        if not isinstance(checkpoint, dict) or key not in checkpoint:
            raise OmnijetError(f"{path}: no entry {key!r}, expected a Lightning checkpoint")
    hyper_parameters, state = _plain(checkpoint["hyper_parameters"]), checkpoint["state_dict"]
    tensors = isinstance(state, dict) and all(torch.is_tensor(value) for value in state.values())
    if not tensors or not isinstance(hyper_parameters, dict):
        raise OmnijetError(f"{path}: hyper_parameters or state_dict are not what their names say")
    return hyper_parameters, state


# %% [markdown]
# A checkpoint as the authors' code writes it, its optimizer among the hyper-parameters, and one that wants to run a command:

# %%
from functools import partial


class Hostile:
    def __reduce__(self):
        return print, ("this would have been a command",)


with tempfile.TemporaryDirectory() as folder:
    path = Path(folder, "last.ckpt")
    kept = {"model_type": "MLP", "optimizer": partial(torch.optim.AdamW, lr=1e-3)}
    torch.save({"hyper_parameters": kept, "state_dict": toy.state_dict()}, path)
    hyper_parameters, state = read_gabbro(path)
    assert hyper_parameters["model_type"] == "MLP"
    assert isinstance(hyper_parameters["optimizer"], StandIn)
    assert torch.equal(state["layer.bias"], toy.layer.bias)
    torch.save({"hyper_parameters": Hostile(), "state_dict": {}}, path)
    try:
        read_gabbro(path)
    except OmnijetError as error:
        message = str(error).replace(folder, "folder")
assert "refused to load" in message and "print" in message
message

# %% [markdown]
# A folder with two files is all that a trained model is; it says itself how it came about, and a damaged or foreign one is recognised in a line instead of a traceback.
# Unlike the authors' release, none of it needs their classes or trusts a pickle. Whoever adds a model inherits from `PretrainedMixin` and gets the rest.
