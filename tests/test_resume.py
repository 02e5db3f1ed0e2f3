"""A run that is killed at any moment goes on from its last finished round and ends with the same numbers.

`pytest tests/test_resume.py --points 50` tries fifty moments, which takes several minutes; the suite tries a few.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_kill_and_resume(tmp_path, request):
    """SIGKILL in each phase in turn, and at a time drawn from the run's length; see killing.py for the moments."""
    number = request.config.getoption("--points")
    command = [sys.executable, str(ROOT / "tests" / "killing.py"), str(tmp_path), "--points", str(number)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found["points"]) == number
    for number, point in enumerate(found["points"]):
        assert point["resumed"] and point["differs"] == [], (number, point)
        # Finished rounds are not asked again: at most the rounds in flight (one a thread, on two nodes) are.
        assert found["messages"] <= point["messages"] <= found["messages"] + 2 * 4, (number, point)
        assert point["killed"] or point["timed"], (number, point)
    aimed = [point["phase"] for point in found["points"] if not point["timed"]]
    assert set(aimed[:5]) == {"learning", "oracle", "unlearning", "audit", "report"}
