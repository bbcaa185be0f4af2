"""Image to image: learn four network calls for a start below full noise, from your own data.

python -m docs.examples.image_to_image
"""

import jax

import ld3_jax
from ld3_jax.learning import distances, on_grid


def main(strength: float = 0.5) -> dict[str, float]:
    """The mean squared error to the teacher of the learned schedule and the standard grids, on other data."""
    ring = ld3_jax.pretrained.load("ring")  # or any network with its noise schedule
    model, schedule, key = ring.model, ring.schedule, jax.random.split(jax.random.key(0), 4)
    x_0 = 2 * jax.random.normal(key[0], (300, 2))  # instead of images

    from_start = ld3_jax.starting_at(schedule, strength=strength)
    x_s = ld3_jax.noised(key[1], x_0, from_start)
    known, held_out = (ld3_jax.make_pairs(model, from_start, some) for some in (x_s[:150], x_s[150:]))
    student = ld3_jax.make_student(model, from_start, ld3_jax.Solver("dpmpp", nfe=4))
    learned = ld3_jax.fit(student, known, key[2], start="logsnr")

    errors = {
        name: distances(student, on_grid(name, from_start, student.solver), held_out) for name in ld3_jax.grids.GRIDS
    }
    errors["learned"] = learned.distances(student, held_out)
    for name, each in sorted(errors.items(), key=lambda item: float(item[1].mean())):
        print(f"{name:<10}{each.mean():.5f}")
    learned.sample(model, schedule, ld3_jax.noised(key[3], x_0[:8], from_start))  # also takes the whole noise schedule
    return {name: float(each.mean()) for name, each in errors.items()}


if __name__ == "__main__":
    main()
