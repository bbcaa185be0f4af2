"""Add a parametrisation (how learned numbers stand for times): here one number, a power.

python -m docs.examples.add_parametrisation
"""

from dataclasses import dataclass

import jax

import ld3_jax


@jax.tree_util.register_static
@dataclass(frozen=True)
class Power:  # times at lam_0 + (lam_n - lam_0) (i / n)^power; the number is log power
    def starts(self, grid, schedule, solver):  # what learning may start from on a standard grid
        return {grid: ld3_jax.learning.on_grid(grid, schedule, solver)}

    def init(self, start, schedule, solver):  # the numbers that stand for the start: the grid "logsnr" has power 1
        return {"log_power": jax.numpy.zeros(1)}

    def discretization(self, params, schedule, solver):
        u = jax.numpy.linspace(0.0, 1.0, solver.n_steps + 1) ** jax.numpy.exp(params["log_power"])
        t = ld3_jax.grids.logsnr(schedule, u)
        return ld3_jax.learning.Discretization(t, t)

    def project(self, params, schedule):  # the nearest numbers that are allowed
        return params

    def learned(self, params):  # which of them a learner may move
        return ld3_jax.learning.parametrisation.all_of(params, frozen=())

    def groups(self, solver):  # what learners need for each group: its rate for Adam, its largest step, ...
        return {"log_power": ld3_jax.learning.Group(rate=0.1, largest=0.5)}


def main() -> ld3_jax.Learned:
    ring = ld3_jax.pretrained.load("ring")
    key, pairs = jax.random.key(1), ld3_jax.make_pairs(ring.model, ring.schedule, *ring.draw(jax.random.key(0), 200))
    student = ld3_jax.make_student(ring.model, ring.schedule, ld3_jax.Solver("dpmpp", nfe=6), ld3_jax.losses.l2)
    learned = ld3_jax.fit(student, pairs, key, parametrisation=Power(), start="logsnr")
    print("squared error {start:.5f} at the start, {learned:.5f} learned".format(**learned.losses["valid"]))
    return learned


if __name__ == "__main__":
    main()
