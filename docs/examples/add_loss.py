"""Add a loss: residuals, and a function of the sum of their squares. Gauss-Newton can learn with it.

python -m docs.examples.add_loss
"""

import jax
import jax.numpy as jnp

import ld3_jax


def residuals(x, y):
    return [x - y]  # in parts, each (batch, size)


def cauchy(s, b=0.05):  # grows like s at first, and like log s for samples that end far away
    return b * jnp.log1p(s / b)


# Configurations find it by its name: make(the model's squared error, the teacher's samples) -> Loss.
ld3_jax.losses.LOSSES["cauchy"] = lambda squared_error, targets: ld3_jax.losses.Loss(residuals, cauchy)


def main() -> dict[str, float]:
    ring = ld3_jax.pretrained.load("ring")
    pairs, held_out = (
        ld3_jax.make_pairs(ring.model, ring.schedule, *ring.draw(jax.random.key(seed), 200)) for seed in (0, 5)
    )
    medians = {}
    for name in ("l2", "cauchy"):
        loss = ld3_jax.losses.LOSSES[name](ring.squared_error, pairs.x_0)
        student = ld3_jax.make_student(ring.model, ring.schedule, ld3_jax.Solver("dpmpp", nfe=5), loss)
        learned = ld3_jax.fit(student, pairs, jax.random.key(1), start="quadratic")
        judged = ld3_jax.make_student(ring.model, ring.schedule, student.solver)  # judges by the squared error
        medians[name] = float(jnp.median(learned.distances(judged, held_out)))
        print(f"learned by {name}: median squared error {medians[name]:.6f} on held-out noise")
    return medians


if __name__ == "__main__":
    main()
