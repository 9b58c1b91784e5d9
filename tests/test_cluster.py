"""Batch commands on Ray: the same files as in one process, one store for all workers, errors in one line."""
import json, os, subprocess, sys, time
from pathlib import Path
import psutil, pytest
from conftest import COMMAND, command

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from waiting import waiting

pytest.importorskip("ray", reason="needs the extra: pip install 'rubriclab[ray]'")
from rubriclab.data.records import write_rows
from rubriclab.engines.fake import World
from rubriclab.lab.c2 import planted_c2

WORLD = "fake:world?seed=4"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    d = tmp_path_factory.mktemp("files")
    world = World(seed=4)
    write_rows(d / "pairs.jsonl", world.pairs(90, per_prompt=1))
    write_rows(d / "items.jsonl", [json.loads(i.to_json()) for i in world.items(60)])
    write_rows(d / "prompts.jsonl", [{"id": i.id, "prompt": i.prompt} for i in world.items(40)])
    write_rows(d / "c2.jsonl", planted_c2(0.5, 4, 2.0)[0].pairs(70, per_prompt=1))
    return d


COMMANDS = {
    "crg": ("crg", "pairs.jsonl", "-e", WORLD, "--attempts", "2", "--temperature", "0.7"),
    "judge": ("judge", "pairs.jsonl", "-e", WORLD, "--orders", "random"),
    "grade": ("grade", "items.jsonl", "-e", WORLD, "--recheck", "20"),
    "c2": ("c2", "c2.jsonl", "-e", WORLD, "--k", "4", "--rounds", "1"),
    "rubricrag": ("rubricrag", "prompts.jsonl", "--generator", WORLD, "--judge", "none", "--strategy", "zero_shot", "--matcher", "words"),
}


SEVERAL = """
import json, sys
from rubriclab.lab.cli import main
for args in json.load(sys.stdin):
    try: main(args, standalone_mode=False)
    except SystemExit as e: print("exit", e.code)
"""


def several(commands, cache): # in one process, so that they share what they start
    done = subprocess.run([sys.executable, "-c", SEVERAL], input=json.dumps([list(map(str, c)) for c in commands]), capture_output=True, text=True, env={**os.environ, "RUBRICLAB_CACHE_DIR": str(cache)}, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return done


@pytest.fixture(scope="module")
def both(files, tmp_path_factory):
    "Every command here and on Ray, then one again, then one that is wrong; what Ray's said."
    d = tmp_path_factory.mktemp("both")
    write_rows(d / "lists.jsonl", [{"id": "r1", "prompt": "Name a moon.", "responses": ["Titan", "Mars", "none"]}])
    ray = ("--ray", "local", "--workers", "2")
    todo = lambda where, more: [(what, files / source, d / where / name, *how, *more) for name, (what, source, *how) in COMMANDS.items()]
    several(todo("here", ()), d / "a")
    again = (*todo("there", ray)[list(COMMANDS).index("judge")][:2], d / "again.jsonl", *COMMANDS["judge"][2:], *ray)
    return d, several([*todo("there", ray), again, ("judge", d / "lists.jsonl", d / "out.jsonl", "-e", WORLD, *ray)], d / "b")


@pytest.mark.parametrize("name", COMMANDS)
def test_the_same_file_as_in_one_process(name, both):
    here, there = (both[0] / where / name for where in ("here", "there"))
    for part in ("pairs.jsonl", "dpo.jsonl", "verifier.jsonl", "report.md") if name == "c2" else ("",): assert (here / part).read_text() == (there / part).read_text(), part


def test_there_is_one_store_for_all_workers(both):
    d, said = both
    assert (d / "again.jsonl").read_text() == (d / "there/judge").read_text() and " 0 computed" in said.stdout.split(str(d / "there/rubricrag"))[-1], said.stdout


def test_an_error_of_a_worker_is_one_line(both, tmp_path):
    _, said = both
    assert said.stdout.splitlines()[-1] == "exit 2" and "record 'r1' is a ranking" in said.stderr and "Traceback" not in said.stderr, said.stderr[-1500:]
    done = command("judge", tmp_path / "none.jsonl", tmp_path / "out.jsonl", "-e", WORLD, "--ray", "local", "--workers", "none")
    assert done.returncode == 2 and "give a number such as 4" in done.stderr


def test_a_killed_worker_loses_nothing(files, tmp_path):
    env, there = {**os.environ, "RUBRICLAB_CACHE_DIR": str(tmp_path / "b")}, tmp_path / "there.jsonl"
    with waiting(0.3, 64) as port:
        how = ("-e", f"api:toy@http://127.0.0.1:{port}?concurrency=4", "--method", "direct", "--readout", "generate")
        run = subprocess.Popen([COMMAND, "judge", files / "pairs.jsonl", there, *how, "--ray", "local", "--workers", "2"], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            killed = _kill_a_worker(run, tmp_path / "b/store.sqlite", 30)
            said, wrong = run.communicate(timeout=240)
        finally: run.kill()
        here = command("judge", files / "pairs.jsonl", tmp_path / "here.jsonl", *how, RUBRICLAB_CACHE_DIR=str(tmp_path / "a"))
    assert run.returncode == 0 and here.returncode == 0 and 30 <= killed < 180, (killed, wrong[-2000:])
    assert there.read_text() == (tmp_path / "here.jsonl").read_text() and "90 records, 0 failed" in said


def _children(pid):
    try: return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess: return [] # it has ended since


def _name(p):
    try: return p.name()
    except psutil.NoSuchProcess: return ""


def _kill_a_worker(run, store, after): # once so many calls are kept; how many were
    from rubriclab.core.store import Store
    end = time.time() + 120
    while time.time() < end and run.poll() is None:
        workers = [p for p in _children(run.pid) if _name(p).startswith("ray::MapWorker")]
        if workers and store.exists() and (n := len(Store(store))) >= after:
            workers[0].kill()
            return n
        time.sleep(0.05)
    return 0
