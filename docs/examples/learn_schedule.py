"""Learn the steps for a pre-trained galaxy network, save the learned schedule, and sample with it.

python -m docs.examples.learn_schedule
"""

from pathlib import Path

import jax
import jax.numpy as jnp

import ld3_jax
from ld3_jax.learning import distances, on_grid


def main(
    out: Path = Path("runs/example/schedule.json"), count: int = 100, steps: int = 40, batch_size: int = 10
) -> dict[str, float]:
    """Learn from `count` pairs; compare with the standard grids on as many held-out pairs."""
    galaxies = ld3_jax.pretrained.load("hsc32")
    model, schedule = galaxies.model, galaxies.schedule
    known, held_out = (
        ld3_jax.make_pairs(model, schedule, *galaxies.draw(jax.random.key(seed), count)) for seed in (0, 1)
    )
    student = ld3_jax.make_student(model, schedule, ld3_jax.Solver("dpmpp", nfe=5))
    learner = ld3_jax.GaussNewton(steps=steps, batch_size=batch_size)
    learned = ld3_jax.fit(student, known, jax.random.key(2), learner=learner)
    out.parent.mkdir(parents=True, exist_ok=True)
    learned.save(out, schedule)

    learned = ld3_jax.load(out)  # all that another program needs besides the model
    errors = {
        name: distances(student, on_grid(name, schedule, student.solver), held_out) for name in ld3_jax.grids.GRIDS
    }
    errors["learned"] = learned.distances(student, held_out)
    print(f"{galaxies}, {learned.solver}: squared error to the teacher on {count} held-out noises")
    for name, each in sorted(errors.items(), key=lambda item: float(item[1].mean())):
        print(f"  {name:<10}mean {each.mean():.4f}   median {jnp.median(each):.4f}")
    images = learned.sample(model, schedule, *galaxies.draw(jax.random.key(3), 4))
    print(f"{out}, and samples {images.shape} from {images.min():.2f} to {images.max():.2f}")
    return {name: float(each.mean()) for name, each in errors.items()}


if __name__ == "__main__":
    main()
