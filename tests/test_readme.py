"""The README works: its code runs as written, and its links lead somewhere."""

import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ld3_jax

README = Path("README.md").read_text()
DOCUMENTS = [Path("README.md"), Path("CONTRIBUTING.md"), *sorted(Path("docs").glob("*.md"))]
(SNIPPET,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
LINKS = [
    (document, link)
    for document in DOCUMENTS
    for link in re.findall(r'(?:\]\(|src=")((?!http)[^)"]+)', document.read_text())
]


def network(variance, x, t, cond):
    """The exact noise prediction of data that are Gaussian."""
    schedule = ld3_jax.schedules.VPLinear()
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    return sigma * x / (alpha**2 * variance + sigma**2)


def test_the_library_in_ten_lines_runs(tmp_path, monkeypatch):
    """The lines in the docstring of the package, which need the core only."""
    monkeypatch.chdir(tmp_path)
    lines = [line.strip() for line in ld3_jax.__doc__.splitlines() if line.startswith("    ")]
    small = "\n".join(lines).replace("(1000, 32, 32, 3)", "(1000, 4, 4, 3)")
    names = {"jax": jax, "ld3_jax": ld3_jax, "key": jax.random.key(0)}
    names |= {"network": network, "weights": jnp.linspace(0.2, 2.0, 3)[None, None, None]}
    exec(compile(small, "ld3_jax", "exec"), names)
    losses = names["learned"].losses["valid"]
    assert losses["learned"] < 0.5 * losses["start"]
    x_T = names["x_T"][:16]
    assert names["x_0"].shape == x_T.shape
    again = jax.jit(ld3_jax.load("schedule.json").sample)(names["model"], names["schedule"], x_T)
    np.testing.assert_allclose(again, names["x_0"], rtol=1e-4, atol=1e-5)
    assert ld3_jax.interop.read("schedule.json").calls == 5  # other programs can run it


def test_the_code_of_the_readme_runs_and_learns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = SNIPPET.replace("1000)", "20)").replace("choose=100", "choose=10")
    small = small.replace(
        "jax.random.key(1))", "jax.random.key(1), learner=ld3_jax.GaussNewton(steps=2), start='logsnr')"
    )
    names = {}
    with jax.numpy_rank_promotion("allow"):  # as it is where nobody has set it
        exec(compile(small, "README.md", "exec"), names)
    losses = names["learned"].losses["valid"]
    assert losses["learned"] < losses["start"]
    assert names["images"].shape == (16, *names["clothes"].shape)
    assert ld3_jax.load("schedule.json").solver == names["student"].solver


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 120
    assert len(README.encode()) <= 6000
    assert len([line for line in SNIPPET.splitlines() if line]) <= 10
    assert len(set(re.findall(r"ld3_jax\.([\w.]+)", SNIPPET))) <= 5
    assert "$" not in README.partition("```python")[0]  # no formula before the first code


def test_the_version_is_stated_once_and_repeated_correctly():
    assert f"version = {{{ld3_jax.__version__}}}" in README
    citation = Path("CITATION.cff").read_text()
    assert f"version: {ld3_jax.__version__}\n" in citation
    assert (
        re.findall(r"^## \[(\d.*?)\] - \d{4}-\d\d-\d\d$", Path("CHANGELOG.md").read_text(), re.MULTILINE)[0]
        == ld3_jax.__version__
    )


def test_the_names_of_the_library_that_the_readme_mentions_exist():
    for name in set(re.findall(r"ld3_jax\.([\w.]*\w)", README)):
        *modules, last = name.split(".")
        assert hasattr(functools.reduce(getattr, modules, ld3_jax), last), name


@pytest.mark.parametrize(("document", "link"), LINKS, ids=str)
def test_a_link_leads_to_a_file_and_to_a_heading_of_it(document, link):
    path, _, heading = link.partition("#")
    target = document.parent / path if path else document
    assert target.exists()
    headings = re.findall(r"^(?:#+|:::) (.*)", target.read_text(), re.MULTILINE) if heading else []
    slugs = [re.sub(r"[^\w -]", "", name).lower().replace(" ", "-") for name in headings]
    assert not heading or heading in [*headings, *slugs]  # a name of the API is its own anchor


def test_the_commands_name_existing_configurations_requirements_and_flags():
    for document in DOCUMENTS:
        for path in re.findall(
            r"(?:configs|experiments|tests|docs|results)/[\w/]+\.(?:py|md|svg|csv|zip)|requirements[\w-]*\.txt",
            document.read_text(),
        ):
            assert Path(path).exists() or (document.parent / path).exists(), path


def test_the_keys_of_the_readme_exist():
    from configs import default

    config = default.get_config()
    for key in re.findall(r"--config\.([\w.]+\w)=", README):
        section, name = key.split(".")
        assert name in config[section], key
