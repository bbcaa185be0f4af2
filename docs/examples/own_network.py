"""Learn the steps for a network of your own, here the ideal denoiser of points on a spiral, and sample with it.

python -m docs.examples.own_network
"""

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

import ld3_jax
from ld3_jax.learning import distances, on_grid


def network(points: jax.Array, x: jax.Array, t: jax.Array, cond: None) -> jax.Array:
    """x_0 from x = (1 - t) x_0 + t eps: the mean of the points, each weighted by how likely it is."""
    squares = ((x[:, None] - (1 - t) * points[None]) ** 2).sum(-1)
    return jax.nn.softmax(-squares / (2 * t**2)) @ points


def main() -> dict[str, float]:
    """Learn from 100 noises and compare on 200 others."""
    angle = jnp.linspace(1.0, 12.0, 300)
    points = jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1) * angle[:, None] / 8  # the network's weights

    schedule = ld3_jax.schedules.RectifiedFlow(t_min=0.05)
    model = ld3_jax.to_noise(Partial(network, points), schedule, "data")
    x_T, held_out = (
        schedule.prior_scale * jax.random.normal(jax.random.key(i), (count, 2)) for i, count in enumerate((100, 200))
    )
    student = ld3_jax.make_student(model, schedule, ld3_jax.Solver("dpmpp", nfe=6))
    learned = ld3_jax.fit(student, ld3_jax.make_pairs(model, schedule, x_T), jax.random.key(2))

    pairs = ld3_jax.make_pairs(model, schedule, held_out)
    errors = {name: distances(student, on_grid(name, schedule, student.solver), pairs) for name in ld3_jax.grids.GRIDS}
    errors["learned"] = learned.distances(student, pairs)
    errors = {name: float(each.mean()) for name, each in errors.items()}
    print(f"{learned.solver}: mean squared error to the teacher on {len(held_out)} held-out noises")
    for name, error in sorted(errors.items(), key=lambda item: item[1]):
        print(f"  {name:<10}{error:.5f}")
    print("half-log-SNR at the times:", learned.lam.round(2))
    sample = learned.sample(model, schedule, held_out[:1])
    print("a sample:", jnp.array_str(sample, precision=3), "the teacher's:", jnp.array_str(pairs.x_0[:1], precision=3))
    return errors


if __name__ == "__main__":
    main()
