"""What the README shows works: its snippets run, and its files exist."""

import re
from pathlib import Path

import pytest

from ld3_jax.learning import Learning

README = Path("README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda snippet: snippet.splitlines()[1])
def test_a_snippet_of_the_readme_runs(snippet):
    # Fewer pairs, calls and steps than shown, to take seconds.
    small = snippet.replace("100, shape", "20, shape").replace("nfe=40", "nfe=8")
    small = small.replace("jax.random.key(1))", "jax.random.key(1), learning=quick)")
    names: dict = {"quick": Learning(steps=10, validate_every=2)}
    exec(compile(small, "README.md", "exec"), names)
    if "state" in names:
        assert names["state"].best_loss < names["state"].start_loss
    else:
        assert names["x_0"].shape == names["x_T"].shape


def test_the_readme_has_both_snippets():
    assert len(SNIPPETS) == 2


@pytest.mark.parametrize("link", re.findall(r"\]\(((?!http)[^)#]+)\)", README))
def test_a_link_of_the_readme_leads_to_a_file(link):
    assert Path(link).exists()


def test_the_commands_of_the_readme_name_existing_configurations_and_requirements():
    for path in re.findall(r"configs/\w+\.py|requirements[\w-]*\.txt", README):
        assert Path(path).exists(), path
