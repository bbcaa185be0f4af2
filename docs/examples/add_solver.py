"""Add a solver: a function from times to a table of coefficients. Its times can then be learned like any other's.

python -m docs.examples.add_solver
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

import ld3_jax
from ld3_jax.learning import distances, on_grid
from ld3_jax.networks import gaussian
from ld3_jax.schedules import NoiseSchedule, VPLinear
from ld3_jax.solvers import SOLVERS, Family, Table, explicit


def halfway(schedule: NoiseSchedule, t: Float[Array, "n"], t_c: Float[Array, "n"], **_: object) -> Table:
    """DDIM with the data prediction extrapolated by half a step: x' = (sigma' / sigma) x - alpha' expm1(-h) D.

    D = 3/2 D_i - 1/2 D_(i-1), and D_0 in the first step. On a grid that is even in lam it is DPM-Solver++ 2M.
    """
    sigma, weight = schedule.sigma(t), -schedule.alpha(t[1:]) * jnp.expm1(-jnp.diff(schedule.lam(t)))
    newest_first = jnp.array([[1.0, 0.0]] + [[1.5, -0.5]] * (len(weight) - 1))
    return explicit(t_c[:-1], sigma[1:] / sigma[:-1], weight[:, None] * newest_first)


def main(count: int = 200) -> dict[str, float]:
    """Its error with 6 calls on a ring of Gaussians, on the best standard grid and on learned times."""
    SOLVERS["halfway"] = Family(halfway, prediction="data", orders=(2,))
    schedule = VPLinear()
    model = gaussian.noise_model(gaussian.ring(), schedule)
    x_T, held_out = jax.random.normal(jax.random.key(0), (2, count, 2))
    pairs, held_out = (ld3_jax.make_pairs(model, schedule, noise) for noise in (x_T, held_out))
    errors = {}
    for name in ("ddim", "halfway"):
        student = ld3_jax.make_student(model, schedule, ld3_jax.Solver(name, nfe=6))
        grids = [on_grid(grid, schedule, student.solver) for grid in ld3_jax.grids.GRIDS]
        errors[name] = min(float(distances(student, grid, held_out).mean()) for grid in grids)
    learner = ld3_jax.LevenbergMarquardt(steps=10)
    learned = ld3_jax.fit(student, pairs, jax.random.key(1), parametrisation=ld3_jax.Gaps(), learner=learner)
    errors["halfway, learned times"] = float(learned.distances(student, held_out).mean())
    print("squared error to the teacher on held-out noise, on the best standard grid or on learned times")
    for name, error in errors.items():
        print(f"  {name:<24}{error:.5f}")
    return errors


if __name__ == "__main__":
    main()
