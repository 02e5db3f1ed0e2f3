"""What the documents say is what the code does."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_page_of_methods_is_current():
    specification = importlib.util.spec_from_file_location("methods", ROOT / "docs" / "methods.py")
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    assert (ROOT / "docs" / "methods.md").read_text() == module.page(), "run: python docs/methods.py > docs/methods.md"


def test_the_example_of_the_readme_runs_when_pasted(tmp_path):
    """Two files in an empty folder, found from there and held against the contract."""
    readme = (ROOT / "README.md").read_text()
    blocks = dict(
        re.findall(r"`((?:strategies|configs/strategy)/shrink\.\w+)`:\n\n```\w+\n(.*?)```", readme, re.DOTALL)
    )
    assert set(blocks) == {"strategies/shrink.py", "configs/strategy/shrink.yaml"}
    for name, text in blocks.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
    (check,) = re.findall(r"```python\n(from fedforget\.strategy import find\n.*?)```", readme, re.DOTALL)
    compose = (
        "from fedforget.config import compose; compose('quickstart', 'strategies=[shrink] strategy.shrink.a=0.3')\n"
    )
    done = subprocess.run([sys.executable, "-c", compose + check], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_links_of_the_documents_lead_somewhere():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"
