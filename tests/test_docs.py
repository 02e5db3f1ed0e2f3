"""What the documents say is what the code does."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXAMPLE = """
import sys
from pathlib import Path

from fedforget.client_app import app
from fedforget.config import compose
from fedforget.experiment import Experiment
from fedforget.grid import InProcessGrid

Experiment(compose(*sys.argv[1:]), InProcessGrid(app), Path("results").resolve()).run()
"""


def test_the_page_of_methods_is_current():
    specification = importlib.util.spec_from_file_location("methods", ROOT / "docs" / "methods.py")
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    assert (ROOT / "docs" / "methods.md").read_text() == module.page(), "run: python docs/methods.py > docs/methods.md"


def test_the_example_of_the_readme_runs_when_pasted(tmp_path):
    """A file in an empty folder, found from there, compared with others, and held against the contract."""
    readme = (ROOT / "README.md").read_text()
    (strategy,) = re.findall(r"`strategies/shrink\.py`:\n\n```python\n(.*?)```", readme, re.DOTALL)
    (tmp_path / "strategies").mkdir()
    (tmp_path / "strategies" / "shrink.py").write_text(strategy)
    (check,) = re.findall(r"```python\n(from fedforget\.strategy import find\n.*?)```", readme, re.DOTALL)
    ((experiment, overrides),) = re.findall(r"`fedforget run (\w+) ([^`]*shrink[^`]*)`", readme)
    small = "model=linear learning.rounds=2 partition.clients=5 evaluation=smoke"
    done = subprocess.run(
        [sys.executable, "-c", EXAMPLE + check, experiment, f"{overrides} {small}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"^shrink +\|", done.stdout, re.MULTILINE), done.stdout


def test_links_of_the_documents_lead_somewhere():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"
