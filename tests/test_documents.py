"""The documents tell the truth about names: links, files, commands and options that they mention exist."""

import re
import shlex

import pytest

import config
from runtime.command_line import parse
from tests.test_architecture import ROOT, SOURCES

DOCUMENTS = [ROOT / "README.md", ROOT / "weights" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SETTINGS = {
    "train.py": config.TrainSettings,
    "tuning.py": config.TuningSettings,
    "test.py": config.TestSettings,
    "predict.py": config.PredictSettings,
    "synthesis.py": config.SynthesizeSettings,
    "pretrain.py": config.PretrainSettings,
    "demo.py": config.DemoSettings,
    "benchmark.py": config.BenchmarkCommand,
}


def name_of(path):
    return str(path.relative_to(ROOT))


def anchors_of(path):
    """Anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands_of(path):
    """Commands of this project in the indented lines of a document: (script, arguments)."""
    text = path.read_text().replace("\\\n", " ")
    for line in re.findall(r"^ {4}(\S*python .*|torchrun .*)$", text, re.MULTILINE):
        words = shlex.split(re.sub(r"\[[^]]*\]|\.\.\.", "", line), comments=True)
        place = next((i for i, word in enumerate(words) if word in SETTINGS), None)
        if place is not None:
            yield words[place], words[place + 1 :]


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(path):
    """Files and headings that a document links to exist."""
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if not target.startswith("http"):
            file, _, anchor = target.partition("#")
            there = path.parent / file if file else path
            assert there.exists(), target
            assert not anchor or anchor in anchors_of(there), target


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_scripts_accept_the_commands(path):
    """Every command that a document shows is one that its script understands."""
    for script, arguments in commands_of(path):
        parse(SETTINGS[script], arguments)


def test_documents_hold_commands():
    """The pattern finds them, so that the test above tests something."""
    assert len(list(commands_of(ROOT / "README.md"))) >= 5


def test_architecture_names_every_file():
    """Each source file has its line in docs/architecture.md."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    assert [path.name for path in SOURCES if path.name != "__init__.py" and f"`{path.name}`" not in text] == []


def test_readme_stays_short():
    """At most 200 lines."""
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200
