"""A run: from a configuration to model, teacher's pairs, student, task, what is learned, and how that is judged."""

import dataclasses
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
from jax.tree_util import Partial
from jaxtyping import Array, PyTree
from ml_collections import config_dict

from experiments import command, configuration
from experiments.configuration import Settings, naming
from ld3_jax import batches, comparison, grids, learning, pretrained
from ld3_jax.comparison import Judge
from ld3_jax.interop import others
from ld3_jax.learning import Discretization, Ended, Learned, Student, Task
from ld3_jax.pretrained import Pretrained
from ld3_jax.teacher import Pairs, Teacher, make_pairs


@dataclass(frozen=True, eq=False)
class Run:
    """What a configuration says, and what follows from it: each part is made when it is first asked for.

    Attributes:
        config: the configuration.
        settings: what it says as values.
        model: the model that it names, or another one.
    """

    config: config_dict.ConfigDict
    settings: Settings
    model: Pretrained

    @classmethod
    def of(cls, config: config_dict.ConfigDict, model: Pretrained | None = None) -> "Run":
        """Check a configuration and load its model, unless that is given. No network is called.

        Raises:
            ValueError: if a value is not one that exists, or values, model, and loss do not fit together.
            FileNotFoundError: if learn.init, the model or the loss needs a file that does not exist.
        """
        settings = configuration.settings(config)
        run = cls(config, settings, model or load_model(config))
        run._check()
        return run

    def learning_as(self, config: config_dict.ConfigDict) -> "Run":
        """A run of the same model and pairs that learns as another configuration says."""
        other = dataclasses.replace(self, config=config, settings=configuration.settings(config))
        vars(other)["pairs"] = self.pairs
        return other

    @cached_property
    def start(self) -> str | Discretization:
        """What learning starts from, as `learning.learn` takes it."""
        start = self.settings.start
        return start.found if isinstance(start, Learned) else start

    @cached_property
    def pairs(self) -> tuple[Pairs, Pairs]:
        """The pairs to learn from, the teacher's or those of teacher.pairs, and the teacher's held-out ones."""
        config, teacher = self.config, self.settings.teacher
        keys, count = jax.random.split(jax.random.key(config.seed), 2), config.data.train + config.data.valid
        if config.teacher.pairs:
            known = _pairs_of_ld3(Path(config.teacher.pairs), self.model, count)
        else:
            known = teacher_pairs("teacher", self.model, teacher, keys[0], count)
        return known, teacher_pairs("teacher, held-out noise", self.model, teacher, keys[1], config.data.test)

    @cached_property
    def student(self) -> Student:
        """The student with its loss."""
        model, loss = self.model, comparison.loss_by_name(self.settings.loss, self.model, self.pairs[0].x_0)
        return learning.make_student(model.model, model.schedule, self.settings.solver, loss, model.decode)

    @cached_property
    def task(self) -> Task:
        """All that does not change while learning."""
        key = jax.random.fold_in(jax.random.key(self.config.seed), 1)
        return learning.make_task(
            self.student, self.pairs[0], key, self.settings.parametrisation, self.settings.learner
        )

    @cached_property
    def judge(self) -> Judge:
        """What judges samples on the held-out noises."""
        return Judge.of(self.student, self.pairs[1], self.model, self.settings.learner.valid_batch)

    def learned(self, ended: Ended) -> Learned:
        """What was learned, with the identity of its model."""
        return dataclasses.replace(learning.describe(self.task, ended.state), model=self.model.identity())

    def learn(self) -> tuple[Learned, Ended]:
        """Learn without a record on the disk."""
        ended = learning.learn(self.task, self.start)
        return self.learned(ended), ended

    def _check(self) -> None:
        """Refuse solver, teacher, learner, start and loss that do not fit the model."""
        of, schedule = self.settings, self.model.schedule
        with naming("solver"):
            of.solver.takes(schedule)
        with naming("teacher"):
            of.teacher.solver.takes(schedule)
            grids.grid(of.teacher.grid, schedule, of.teacher.solver.n_steps)
        with naming("learn.init"):
            if isinstance(of.start, Learned):
                of.start.check_range(schedule)
            first = "uniform" if self.start == "race" else self.start
            times = learning.on_grid(first, schedule, of.solver) if isinstance(first, str) else first
            of.parametrisation.init(times, schedule, of.solver)
        with naming("learn"):
            loss = comparison.shape_of_loss(of.loss, self.model)
            student = learning.make_student(lambda x, t, cond: x, schedule, of.solver, loss)
            of.learner.check(Task(student, None, None, None, of.parametrisation, of.learner))


def load_model(config: config_dict.ConfigDict) -> Pretrained:
    """The model of a configuration; of its prompts, as many as pairs are drawn."""
    settings = dict(config.network)
    if settings["prompts"] and not settings["num_prompts"]:
        settings["num_prompts"] = config.data.train + config.data.valid + config.data.test
    return load_by_name(settings.pop("name"), settings)


def load_by_name(name: str, settings: dict[str, Any]) -> Pretrained:
    """Load a model with a progress bar for each download and for the text."""
    with ExitStack() as bars:
        update: dict[str, Callable[..., None]] = {}

        def on_progress(label: str, done: int, total: int) -> None:
            if label not in update:
                update[label] = bars.enter_context(command.progress(label, total))
            update[label](done)

        return pretrained.load(name, on_progress=on_progress, **settings)


def teacher_pairs(label: str, model: Pretrained, teacher: Teacher, key: Array, count: int) -> Pairs:
    """The teacher's pairs from noise of that key, decoded, with a progress bar."""
    with command.progress(label, batches.equal_batches(count, teacher.batch_size)[0]) as update:
        pairs = make_pairs(
            model.model,
            model.schedule,
            *model.draw(key, count),
            teacher=teacher,
            on_batch=lambda done, total: update(done),
        )
    return pairs._replace(x_0=_decode(model.decode, pairs.x_0, teacher.batch_size))


def _pairs_of_ld3(path: Path, model: Pretrained, count: int) -> Pairs:
    def one() -> Pairs:
        x_T, cond = model.draw(jax.random.key(0), 1)
        return jax.tree.map(lambda leaf: leaf[0], Pairs(x_T, model.decode(x_T), cond))

    return others.read_pairs(path, model.schedule, count, jax.eval_shape(one))


@partial(jax.jit, static_argnums=2)
def _decode(decode: Partial, states: PyTree, batch_size: int) -> PyTree:
    return batches.in_batches(decode, states, batch_size)
