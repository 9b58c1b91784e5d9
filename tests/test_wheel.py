"""The wheel carries what running needs: installed into an empty environment, in an empty folder, the smoke recipe runs."""
import os, subprocess, sys, zipfile
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--wheel", "--outdir", str(out), str(ROOT)], check=True, capture_output=True, text=True)
    return next(out.glob("*.whl"))


def test_contents(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for need in ("prompts/judge/with_rubric.md", "shipped/recipes/openrubrics/smoke.yaml", "shipped/papers/01_openrubrics.ipynb", "shipped/papers/01_openrubrics.toml", "shipped/data/mini/pairs.jsonl"):
        assert f"rubriclab/{need}" in names, need
    assert not [n for n in names if n.startswith(("tests/", "nbs/", "rubriclab/shipped/results"))]


def test_the_smoke_recipe_runs_from_the_wheel(wheel, tmp_path):
    (folder := tmp_path / "empty").mkdir()
    run = lambda *a, **kw: subprocess.run([str(x) for x in a], cwd=folder, capture_output=True, text=True, timeout=1500, **kw)
    assert run(sys.executable, "-m", "venv", tmp_path / "venv").returncode == 0
    python = tmp_path / "venv" / "bin" / "python"
    done = run(python, "-m", "pip", "install", "-q", "--no-compile", "--disable-pip-version-check", "-c", ROOT / "constraints.txt", f"{wheel}[hf,lab]")
    assert done.returncode == 0, done.stderr[-3000:]
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = run(python.with_name("rubriclab"), "run", "openrubrics", "--recipe", "smoke", env=env)
    assert done.returncode == 0 and "status" in done.stdout, done.stdout + done.stderr
    assert len(list((folder / "results" / "openrubrics").iterdir())) == 1
