"""Benchmarks still run after what they measure has changed."""
import ast, importlib.util, os, subprocess, sys
from pathlib import Path
import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


def test_requests_to_a_server_that_waits_or_refuses(tmp_path):
    done = subprocess.run([sys.executable, FOLDER / "served.py", "--small"], capture_output=True, text=True, timeout=300, env={**os.environ, "RUBRICLAB_CACHE_DIR": str(tmp_path)})
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [line.split() for line in done.stdout.splitlines()[1:]]
    assert [r[:3] for r in rows] == [["queue", "no", "64"], ["queue", "yes", "64"], ["queue", "yes", "16"], ["refuse", "no", "64"]]
    assert [int(r[-1]) > 0 for r in rows] == [False, False, False, True] # replies 429


def _imported(path): # (module, name) of the lab that a file names anywhere, also inside of a function
    nodes = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom) and n.module.startswith("rubriclab")]
    return {(n.module, a.name) for n in nodes for a in n.names}


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda p: p.stem)
def test_what_a_benchmark_imports_is_there(path):
    gone = [f"{m}.{n}" for m, n in sorted(_imported(path)) if not hasattr(importlib.import_module(m), n) and not importlib.util.find_spec(f"{m}.{n}")]
    assert not gone
