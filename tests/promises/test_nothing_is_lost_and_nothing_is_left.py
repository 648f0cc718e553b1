"""A few seconds of `scripts/soak`: the real clients, reloads and judgement of the long run."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no /proc to count with")
def test_a_short_soak(tmp_path: Path) -> None:
    """Every transfer whole, every connection told, every descriptor given back; and a picture of it."""
    picture = tmp_path / "soak.svg"
    soak = subprocess.run(
        [sys.executable, "-m", "soak", "--seconds", "5", "--picture", picture],
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'tests'}:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (soak.returncode, soak.stderr) == (0, "")
    came, verified, reloads = map(int, re.findall(r"(\d+) (?:connections|transfers|reloads)", soak.stdout))
    assert came > 20
    assert verified > 20
    assert reloads > 0
    assert soak.stdout.endswith("nothing was lost, and nothing is left\n")
    assert picture.read_text().startswith("<?xml")
