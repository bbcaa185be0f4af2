"""Learn the steps for a PyTorch module, here the ideal denoiser of points on a spiral, and sample with it.

python -m docs.examples.own_pytorch
"""

import jax
import torch

import ld3_jax
from ld3_jax import interop
from ld3_jax.teacher import draw_noise


class Denoiser(torch.nn.Module):
    """x_0 from x = (1 - t) x_0 + t eps: the mean of the points, each weighted by how likely it is."""

    def __init__(self) -> None:
        super().__init__()
        angle = torch.linspace(1.0, 12.0, 300)
        self.register_buffer("points", torch.stack([angle.cos(), angle.sin()], 1) * angle[:, None] / 8)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        squares = ((x[:, None] - (1 - t)[:, None, None] * self.points) ** 2).sum(-1)
        return torch.softmax(-squares / (2 * t[:, None] ** 2), 1) @ self.points


def main() -> dict[str, float]:
    """Learn from 100 noises and compare on 200 others."""
    schedule = ld3_jax.schedules.RectifiedFlow(t_min=0.05)
    network = interop.pytorch_network(Denoiser().eval(), shape=(2,))  # for images (3, 64, 64), as the module takes them
    model = ld3_jax.to_noise(network, schedule, "data")
    x_T, held_out = (draw_noise(jax.random.key(i), count, (2,)) for i, count in enumerate((100, 200)))
    student = ld3_jax.make_student(model, schedule, ld3_jax.Solver("dpmpp", nfe=6))
    learned = ld3_jax.fit(student, ld3_jax.make_pairs(model, schedule, x_T), jax.random.key(2))

    pairs = ld3_jax.make_pairs(model, schedule, held_out)
    standard = ld3_jax.learning.on_grid("logsnr", schedule, student.solver)
    errors = {
        "logsnr": ld3_jax.learning.distances(student, standard, pairs),
        "learned": learned.distances(student, pairs),
    }
    means = {name: float(each.mean()) for name, each in errors.items()}
    print(f"{learned.solver}: mean squared error to the teacher on {len(held_out)} held-out noises: {means}")
    print("a sample:", learned.sample(model, schedule, held_out[:1]))
    return means


if __name__ == "__main__":
    main()
