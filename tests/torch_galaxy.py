"""`networks.galaxy.GalaxyNet` as a PyTorch module, for images of one channel ahead of their rows and columns."""

import torch
from jaxtyping import PyTree
from torch.nn.functional import layer_norm, linear


class GalaxyModule(torch.nn.Module):
    """The network with Flax's weights, by their names.

    Args:
        weights: parameters of `GalaxyNet`.
    """

    def __init__(self, weights: PyTree):
        super().__init__()
        for layer, its in weights.items():
            for name, leaf in its.items():
                for part, array in leaf.items() if isinstance(leaf, dict) else (("", leaf),):
                    self.register_buffer("_".join(filter(None, (layer, name, part))), torch.tensor(array))

    def dense(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return linear(x, getattr(self, f"{name}_kernel").T, getattr(self, f"{name}_bias"))

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        scale, bias = getattr(self, f"{name}_scale"), getattr(self, f"{name}_bias")
        return layer_norm(x, x.shape[1:], scale, bias, 1e-5)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        batch, _, size, _ = x.shape
        time = (t / 10).reshape(-1, 1, 1, 1).expand(batch, 1, size, size).to(x.dtype)
        patches = torch.cat([x, time], 1).reshape(batch, 2, size // 4, 4, size // 4, 4)
        tokens = self.dense("patches_in", patches.permute(0, 2, 4, 3, 5, 1).reshape(batch, (size // 4) ** 2, -1))
        for i in range(4):
            across = self.norm(f"block{i}_norm1", tokens).transpose(1, 2)
            across = self.dense(f"block{i}_patch_out", torch.relu(self.dense(f"block{i}_patch_in", across)))
            tokens = tokens + across.transpose(1, 2)
            within = torch.relu(self.dense(f"block{i}_hidden_in", self.norm(f"block{i}_norm2", tokens)))
            tokens = tokens + self.dense(f"block{i}_hidden_out", within)
        pixels = self.dense("patches_out", self.norm("norm", tokens)).reshape(batch, size // 4, size // 4, 4, 4)
        return pixels.swapaxes(2, 3).reshape(x.shape)
