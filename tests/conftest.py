"""Shared fixtures: the command line, and one smoke run that several tests look at."""
import json, os, subprocess, sys
from pathlib import Path
import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow]) # of a machine that others use too, a slow moment says nothing
settings.load_profile("shared")

COMMAND = str(Path(sys.executable).with_name("rubriclab"))


# Of two files at a time the longest go first, else one of them runs alone at the end; those that fill both cores by themselves go last
FIRST = ("training", "cluster", "contract", "gpu_recipes", "run", "kill", "wheel", "hf", "prefix", "c2", "grade_cli", "rag_cli")
LAST = ("recovery_c2", "recovery_selective", "recovery_rubricrag", "recovery_grades", "recovery")


def pytest_collection_modifyitems(items):
    place = {f"test_{name}.py": i for i, name in [*enumerate(FIRST), *enumerate(LAST, 100)]}
    items.sort(key=lambda item: place.get(item.path.name, 50))


def command(*args, **env):
    "Run `rubriclab` as a person would."
    return subprocess.run([COMMAND, *map(str, args)], capture_output=True, text=True, env={**os.environ, **env}, timeout=900)


@pytest.fixture(scope="session")
def smoke(tmp_path_factory):
    "Two identical smoke runs of OpenRubrics; the second comes from the store of the first."
    home = tmp_path_factory.mktemp("smoke")
    env = {"RUBRICLAB_CACHE_DIR": os.environ.get("RUBRICLAB_CACHE_DIR") or str(Path("~/.cache/rubriclab").expanduser())}
    folders = []
    for _ in range(2):
        done = command("run", "openrubrics", "--recipe", "smoke", "--results-dir", home, **env)
        assert done.returncode == 0, done.stdout + done.stderr
        folders.append(max((home / "openrubrics").iterdir(), key=lambda p: (p.stat().st_mtime, p.name)))
    return {"folders": folders, "screen": done.stdout, "metrics": json.loads((folders[0] / "metrics.json").read_text()),
            "items": [json.loads(line) for line in open(folders[0] / "items.jsonl")]}
