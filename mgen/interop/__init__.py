"""Released PyTorch weights in and out: name maps between their state dicts and our parameter trees.

A state dict is `dict[str, np.ndarray]` (see `torch_weights.load_safetensors`); nothing here imports
torch. One module a released architecture, each with `config`, `from_torch` and `to_torch`. May
import the families' configs; no family imports it.
"""
