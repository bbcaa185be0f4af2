"""Add a learner (how the numbers move): here, random steps that are kept if they lower a batch's loss.

python -m docs.examples.add_learner
"""

from dataclasses import dataclass

import jax
from jax.flatten_util import ravel_pytree

import ld3_jax
from ld3_jax.learning import Learner, StepMetrics, validation_loss


@dataclass(frozen=True, kw_only=True)
class RandomSearch(Learner):
    steps: int = 300
    batch_size: int = 50
    size: float = 0.03  # size of a step

    def calls(self, task, params):  # network calls of a step for each sample
        return 2 * task.student.solver.nfe

    def move(self, task, state, batch):
        pairs = jax.tree.map(lambda leaf: leaf[batch], task.train)
        flat, unravel = ravel_pytree(state.params)
        tried = flat + self.size * jax.random.normal(jax.random.fold_in(task.key, state.step), flat.shape)
        tried = task.parametrisation.project(unravel(tried), task.student.schedule)
        before, after = (validation_loss(task, params, pairs) for params in (state.params, tried))
        params = jax.tree.map(lambda new, old: jax.numpy.where(after < before, new, old), tried, state.params)
        nothing = jax.numpy.zeros(())
        return params, (), StepMetrics(loss=before, grad_norm=nothing, moved=nothing)


def main() -> ld3_jax.Learned:
    ring = ld3_jax.pretrained.load("ring")
    pairs = ld3_jax.make_pairs(ring.model, ring.schedule, *ring.draw(jax.random.key(0), 200))
    student = ld3_jax.make_student(ring.model, ring.schedule, ld3_jax.Solver("dpmpp", nfe=5))
    learned = ld3_jax.fit(student, pairs, jax.random.key(1), learner=RandomSearch(), start="logsnr")
    print("loss {start:.5f} at the start, {learned:.5f} learned".format(**learned.losses["valid"]))
    return learned


if __name__ == "__main__":
    main()
