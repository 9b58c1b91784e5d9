"""Benchmarks still run after what they measure has changed."""
import ast, importlib.util, math, os, subprocess, sys
from pathlib import Path
import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
sys.path.append(str(FOLDER))
import bars, beside_autorubric


def test_requests_to_a_server_that_waits_or_refuses(tmp_path):
    done = subprocess.run([sys.executable, FOLDER / "served.py", "--small"], capture_output=True, text=True, timeout=300, env={**os.environ, "RUBRICLAB_CACHE_DIR": str(tmp_path)})
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [line.split() for line in done.stdout.splitlines()[1:]]
    assert [r[:4] for r in rows] == [["queue", "no", "64", "64"], ["queue", "yes", "64", "64"], ["queue", "yes", "16", "16"], ["queue", "yes", "64", "16"], ["refuse", "no", "64", "64"]]
    assert [int(r[-1]) > 0 for r in rows] == [False, False, False, False, True] # replies 429


def _imported(path): # (module, name) of the lab that a file names anywhere, also inside of a function
    nodes = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom) and n.module.startswith("rubriclab")]
    return {(n.module, a.name) for n in nodes for a in n.names}


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda p: p.stem)
def test_what_a_benchmark_imports_is_there(path):
    gone = [f"{m}.{n}" for m, n in sorted(_imported(path)) if not hasattr(importlib.import_module(m), n) and not importlib.util.find_spec(f"{m}.{n}")]
    assert not gone


def test_bars_beside_autorubric_are_of_graded_answers(capsys):
    side = lambda seconds, failed, scores: [{"seconds": seconds, "failed": failed, "scores": scores, "read": 1000, "written": 100}]
    found = {"autorubric per criterion": side(10, [5, 9], [1.0, 0.0]), "autorubric per item": side(5, [0, 10], [0.5, 0.0]), # 2 answers in 10 s, 6 criteria; 1 in 5 s, 10 criteria
             "ours written, per criterion": side(5, [5, 9], [1.0, 0.0]), "ours written, per item": side(4, [0, 10], [0.5, None]),
             "bare client, our requests": side(4.8, [], []), "ours, log-probabilities": side(1, [0, 0], [1.0, 0.5])}
    assert beside_autorubric.report(found, 2, 1) == [True, True, True]
    *_, written, scores, bare, one, five, nine = capsys.readouterr().out.splitlines()
    assert written == "ours written, per criterion over autorubric per criterion: 2.00, 2.00 to 2.00 in graded answers a second; 2.00, 2.00 to 2.00 in labeled criteria a second"
    assert one == "bar: ours written, per criterion over autorubric per criterion 2.000, at least 1: met" and five.endswith("10.000, at least 5: met") and nine.endswith("0.960, at least 0.9: met")
    assert "10.00, 10.00 to 10.00 in graded answers" in scores and "33.33, 33.33 to 33.33 in labeled criteria" in scores and ": 0.96, " in bare
    assert beside_autorubric.ratios([1], [0]) == [math.inf]
    found["ours written, per criterion"] = side(11, [5, 9], [1.0, 0.0])
    found["ours written, per item"] = side(11, [0, 10], [0.5, None])
    assert beside_autorubric.report(found, 2, 1) == [False, True, False]
    with pytest.raises(SystemExit) as e: bars.leave([True, bars.holds("a number", math.nan, least=0)])
    assert e.value.code == 1
