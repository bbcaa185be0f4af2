"""Add a domain on a manifold: angles on a circle. A noise schedule names its space; solvers and learners follow.

python -m docs.examples.add_domain
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

import ld3_jax
from ld3_jax.space import Space


def wrapped(angle):
    return jnp.mod(angle + jnp.pi, 2 * jnp.pi) - jnp.pi


@dataclass(frozen=True)
class CircleNoise(ld3_jax.schedules.NoiseSchedule):  # sigma = t, and alpha = 1 as on every manifold
    t_min, t_max = 0.05, 4.0
    space = Space(retract=lambda angle, update: wrapped(angle + update), flat=False)

    def log_alpha(self, t):
        return jnp.zeros_like(t)

    def log_sigma(self, t):
        return jnp.log(t)

    def inverse_lam(self, lam):
        return jnp.exp(-lam)


def eps(x, t, cond=None):  # -sigma grad log p of noisy angles around -2, 0.5 and 1.5
    def log_density(x):
        turns = jnp.array([-2.0, 0.5, 1.5])[:, None] + 2 * jnp.pi * jnp.arange(-3, 4)[None]
        return jax.nn.logsumexp(-((x - turns) ** 2) / (2 * (0.1**2 + t**2)))

    return -t * jax.vmap(jax.grad(log_density))(x[:, 0])[:, None]


def main() -> tuple[float, float]:
    schedule, loss = CircleNoise(), ld3_jax.losses.Loss(lambda x, y: [wrapped(x - y)])
    x_T = jax.random.uniform(jax.random.key(0), (2, 300, 1), minval=-jnp.pi, maxval=jnp.pi)
    pairs, held_out = (ld3_jax.make_pairs(eps, schedule, noise) for noise in x_T)
    student = ld3_jax.make_student(eps, schedule, ld3_jax.Solver("dpmpp", nfe=5, order=2), loss)
    learned = ld3_jax.fit(student, pairs, jax.random.key(1), learner=ld3_jax.GaussNewton(batch_size=50))
    edm = ld3_jax.learning.on_grid("edm", schedule, student.solver)
    angles = ld3_jax.learning.distances(student, edm, held_out), learned.distances(student, held_out)
    before, after = (float(jnp.median(one)) for one in angles)  # the few angles between two modes decide a mean
    print(f"median squared angle to the teacher's: {before:.5f} on the grid edm, {after:.5f} learned")
    return before, after


if __name__ == "__main__":
    main()
