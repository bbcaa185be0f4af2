"""Plain English: old phrases that read like a translation do not come back in documents, docstrings or messages."""

import re
from pathlib import Path

import pytest

# A phrase, and what to write instead.
PHRASES = {
    r"hand-?made": "standard grid",
    r"everything (?:that )?(?:is |was )?learned|learned,? everything": "times + coefficients",
    r"what was learned": "the learned schedule, or its name",
    r"nobody foresaw": "an unexpected error",
    r"\bthose of\b": "repeat the noun, or use 's",
    r", too(?=[.,;:)\"]| )(?! (?:few|many|much|small|large|long|short))": "also",
    r"(?:^|[.:;?!] |\"\"\"|# )(?-i:Of) [a-z][^.,;:]{2,60}, ": "begin with the subject",
    r"now and then": "from time to time, or how often",
    r"goes on from": "continues from",
    r"\b(?:is|are) no (?:array|dataclass|function|images?|json|list|module|molecule|number|pytree|scheduler|sums?"
    r"|tensor|vectors?)\b": "is not a",
    r"\bone's own\b": "your own",
    r"the disk does not take": "cannot be written to the disk",
}
PLACES = (
    "*.md",
    "*.py",
    "*.toml",
    "*.cff",
    ".ci/*",
    ".github/**/*.*",
    "configs/**/*.py",
    "docs/**/*.md",
    "docs/**/*.py",
)
PLACES += ("experiments/*.*", "ld3_jax/**/*.py", "notebooks/**/*.py", "results/*.md", "tests/*.py")
FILES = sorted({path for place in PLACES for path in Path().glob(place)} - {Path("tests/test_prose.py")})


def sentences(path: Path) -> str:
    """The text on one line, without comment signs and code's string joints, so that a phrase may be wrapped."""
    text = re.sub(r"\n\s*(?:# )?", " ", path.read_text(encoding="utf-8"))
    return re.sub(r'"\s+f?r?"', "", text)


TEXTS = {path: sentences(path) for path in FILES}


def test_there_are_files_to_read():
    assert {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "pyproject.toml"} <= {path.name for path in FILES}


@pytest.mark.parametrize("phrase", PHRASES)
def test_an_old_phrase_does_not_come_back(phrase):
    pattern = re.compile(phrase, re.IGNORECASE)
    found = [
        f"{path}: ...{text[max(0, match.start() - 40) : match.end() + 20]}..."
        for path, text in TEXTS.items()
        for match in pattern.finditer(text)
    ]
    assert not found, f"write {PHRASES[phrase]!r}:\n" + "\n".join(found)
