"""Add a noise schedule: a frozen dataclass with three formulas. Grids, solvers and learning follow from them.

python -m docs.examples.add_noise_schedule
"""

from dataclasses import dataclass

import jax

import ld3_jax
from ld3_jax.networks import gaussian


@dataclass(frozen=True)
class EvenLogSNR(ld3_jax.schedules.NoiseSchedule):
    """Variance preserving with lam = log(alpha / sigma) = -width t: alpha^2 = 1 / (1 + exp(-2 lam)), t in [-1, 1]."""

    width: float = 5.0

    t_min, t_max = -1.0, 1.0

    def log_alpha(self, t):
        return -0.5 * jax.nn.softplus(2 * self.width * t)

    def log_sigma(self, t):
        return -0.5 * jax.nn.softplus(-2 * self.width * t)

    def inverse_lam(self, lam):
        return -lam / self.width


def main() -> tuple[float, float]:
    """Learn the times of a ring of Gaussians under this noise schedule; errors on held-out noise."""
    schedule = EvenLogSNR()
    model = gaussian.noise_model(gaussian.ring(), schedule)
    x_T = jax.random.normal(jax.random.key(0), (2, 200, 2))
    pairs, held_out = (ld3_jax.make_pairs(model, schedule, noise) for noise in x_T)
    student = ld3_jax.make_student(model, schedule, ld3_jax.Solver("unipc", nfe=5))
    learned = ld3_jax.fit(student, pairs, jax.random.key(1), start="edm")
    edm = ld3_jax.learning.on_grid("edm", schedule, student.solver)
    before, after = ld3_jax.learning.distances(student, edm, held_out), learned.distances(student, held_out)
    print(
        f"held-out error {before.mean():.5f} on the grid edm, {after.mean():.5f} learned: lam = {learned.lam.round(2)}"
    )
    return float(before.mean()), float(after.mean())


if __name__ == "__main__":
    main()
