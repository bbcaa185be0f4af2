"""A run: from a configuration to model, teacher's pairs, student, task, learned schedule, and comparison."""

import dataclasses
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
from jaxtyping import Array
from ml_collections import config_dict

from experiments import command, configuration, outline
from experiments.configuration import naming
from ld3_jax import comparison, grids, learning, pretrained, starts
from ld3_jax.batches import equal_batches
from ld3_jax.comparison import Judge
from ld3_jax.disk import digest
from ld3_jax.interop import imported_files
from ld3_jax.learning import Discretization, Ended, Learned, Student, Task
from ld3_jax.learning.parametrisation import Parametrisation
from ld3_jax.learning.task import Learner
from ld3_jax.pretrained import Pretrained, drawn, starting
from ld3_jax.ranges import COUNT, check
from ld3_jax.solvers import Solver
from ld3_jax.teacher import Pairs, Teacher

_CANDIDATES = 10  # noises for each pair, by default


@dataclass(frozen=True, eq=False)
class Run:
    """A configuration as values, and what follows from it: each part is made when it is first needed.

    Attributes:
        config: the configuration.
        solver: the student's.
        teacher: how the pairs are made.
        parametrisation: how learned numbers stand for times and coefficients.
        learner: how the numbers move.
        init: what learning starts from: a grid's name, "best", or an earlier schedule.
    """

    config: config_dict.ConfigDict
    solver: Solver
    teacher: Teacher
    parametrisation: Parametrisation
    learner: Learner
    init: str | Learned

    @classmethod
    def of(cls, config: config_dict.ConfigDict) -> "Run":
        """Read a configuration, without its model.

        Raises:
            ValueError: if a value is not one that exists; it names the key, what was given and what is allowed.
            FileNotFoundError: if learn.init names a file that does not exist.
        """
        configuration.check_run(config)
        learn, of = config.learn, config.teacher
        with naming("solver", config.solver):
            solver = configuration.solver(config.solver)
        if config.solver.start:
            with naming("solver.start"):
                starts.parse(config.solver.start)
        init = configuration.start(learn.init, solver)
        with naming("learn", learn, configuration.KEYS):
            parametrisation = configuration.parametrisation(learn, init)
            learner = configuration.learner(learn, config.data.valid, parametrisation, solver)
        with naming("teacher", of):
            accurate, cache = configuration.solver(of), Path(of.cache)
            teacher = Teacher(accurate, of.grid, of.batch_size, cache, config.network.name, of.drop_not_finite)
        return cls(config, solver, teacher, parametrisation, learner, init)

    def sharing(self, **parts: Any) -> "Run":
        """This run with its `model` or its `pairs` given."""
        other = dataclasses.replace(self)
        vars(other).update(parts)
        return other

    def check(self) -> "Run":
        """Refuse solver, teacher, learner, start and loss that do not fit the model, before any network is called.

        Raises:
            ValueError: it names the section.
            FileNotFoundError: if the model or the loss needs a file that does not exist.
        """
        schedule = self.model.schedule
        with naming("solver"):
            self.solver.takes(schedule)
        with naming("teacher"):
            self.teacher.solver.takes(schedule)
            grids.grid(self.teacher.grid, schedule, self.teacher.solver.n_steps)
        with naming("data.candidates"):
            if among := self.candidates:
                schedule.space.require_vectors("choosing among candidates")
                count = self.config.data.train + self.config.data.valid
                check({"candidates": among}, {"candidates": COUNT._replace(least=count)})
        with naming("learn.init"):
            if isinstance(init := self.init, Learned):
                init.check_range(schedule)
                if init.range(schedule) != schedule:
                    raise ValueError(f"it was learned from t = {init.t_start:g} on, and this student from {schedule}")
            outline.first_numbers(self)
        with naming(f"learn (loss {self.config.learn.loss!r})"):
            self.learner.check(outline.task(self, comparison.shape_of_loss(self.config.learn.loss, self.model)))
        return self

    @property
    def start(self) -> str | Discretization:
        """What learning starts from, as `learning.learn` takes it."""
        return self.init.discretization if isinstance(self.init, Learned) else self.init

    @cached_property
    def model(self) -> Pretrained:
        """The model, with the start solver.start and as many prompts as pairs are drawn."""
        settings, data, start = dict(self.config.network), self.config.data, self.config.solver.start
        count = data.train + data.valid + data.test
        if settings["prompts"] and not settings["num_prompts"]:
            settings["num_prompts"] = count
        model = load_model(settings.pop("name"), settings)
        if not start:
            return model
        with naming("solver.start"):
            model = model.starting_at(starting.by_teacher(model, self.teacher), **starts.parse(start))
        if data.file:
            states = starting.read(Path(data.file), model.shape)
            if len(states) < count:
                raise ValueError(f"data.file: {data.file} has {len(states)} states, train + valid + test are {count}")
            model = dataclasses.replace(model, images=starting.of_states(states))
        return model

    @cached_property
    def pairs(self) -> tuple[Pairs, Pairs]:
        """The pairs to learn from (the teacher's or teacher.pairs), and the teacher's held-out pairs."""
        config, teacher = self.config, self.teacher
        count, keys, among = config.data.train + config.data.valid, self.keys, self.candidates
        known = self.pairs_of_others or teacher_pairs("teacher", self.model, teacher, keys[0], count, among=among)
        first = count if config.data.file else 0  # held-out images too
        return known, teacher_pairs("teacher, held-out noise", self.model, teacher, keys[1], config.data.test, first)

    @property
    def candidates(self) -> int:
        """How many candidate noises the pairs to learn from are chosen from; 0: all pairs are used.

        By default there are ten for each pair, if candidates cost nothing extra: no prompt to encode, no image to make.
        """
        config, data, model = self.config, self.config.data, self.model
        if data.candidates is not None:
            return data.candidates
        free = model.schedule.space.flat and not (config.solver.start or config.network.prompts or config.teacher.pairs)
        return _CANDIDATES * (data.train + data.valid) if free else 0

    @property
    def keys(self) -> Array:
        """Keys of the noise to learn from, of the held-out noise, and of the order of the batches."""
        return jax.random.split(jax.random.key(self.config.seed), 3)

    @cached_property
    def pairs_of_others(self) -> Pairs | None:
        """The pairs to learn from that teacher.pairs names, if any."""
        if not (path := self.config.teacher.pairs):
            return None
        one = jax.eval_shape(lambda pairs: jax.tree.map(lambda leaf: leaf[0], pairs), self.model.shapes(1))
        count = self.config.data.train + self.config.data.valid
        return imported_files.read_pairs(Path(path), self.model.schedule, count, one)

    def contents(self) -> dict[str, str]:
        """Digests of the files that the configuration names, because a file may be replaced under its name."""
        model, data = self.model, self.config.data
        cond = model.draw_condition and model.draw_condition(jax.random.key(0), data.train + data.valid + data.test, 0)
        found = {"network": (model.model, model.decode), "conditions": cond, "data_file": model.images}
        found |= {"teacher_pairs": self.pairs_of_others, "learn_init": self.start}
        return {name: digest(value) for name, value in found.items() if jax.tree.leaves(value)}

    @cached_property
    def student(self) -> Student:
        """The student with its loss."""
        model, loss = self.model, comparison.loss_by_name(self.config.learn.loss, self.model, self.pairs[0].x_0)
        return learning.make_student(model.model, model.schedule, self.solver, loss, model.decode)

    @cached_property
    def task(self) -> Task:
        """Everything that does not change while learning."""
        return learning.make_task(self.student, self.pairs[0], self.keys[2], self.parametrisation, self.learner)

    @cached_property
    def judge(self) -> Judge:
        """The judge of samples on the held-out noises."""
        return Judge.of(self.student, self.pairs[1], self.model, self.learner.valid_batch)

    def learned(self, ended: Ended) -> Learned:
        """The learned schedule, with the identity of its model."""
        return dataclasses.replace(learning.describe(self.task, ended.state), model=self.model.identity())

    def learn(self) -> tuple[Learned, Ended]:
        """Learn without a record on the disk."""
        ended = learning.learn(self.task, self.start)
        return self.learned(ended), ended


def load_model(name: str, settings: dict[str, Any]) -> Pretrained:
    """Load a model with a progress bar for each download and for the text."""
    with ExitStack() as bars:
        update: dict[str, Callable[..., None]] = {}

        def on_progress(label: str, done: int, total: int) -> None:
            if label not in update:
                update[label] = bars.enter_context(command.progress(label, total))
            update[label](done)

        return pretrained.load(name, on_progress=on_progress, **settings)


def teacher_pairs(
    label: str, model: Pretrained, teacher: Teacher, key: Array, count: int, first: int = 0, among: int = 0
) -> Pairs:
    """The teacher's pairs from a key's noise, decoded, with a progress bar; see `drawn.teacher_pairs`."""
    batches = sum(equal_batches(n, teacher.batch_size)[0] for n in (count, among) if n)
    with command.progress(label, batches) as update:
        return drawn.teacher_pairs(model, teacher, key, count, lambda done, total: update(done), first, among)
