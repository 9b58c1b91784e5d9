"""A run that is killed and started again repeats no finished call and ends the same. Short here; `python tests/test_kill.py 10` kills ten times."""
import json, os, random, sqlite3, subprocess, sys, time
from pathlib import Path
import psutil
from conftest import COMMAND, command
from rubriclab.data.records import write_rows
from rubriclab.engines.fake import World


def rows_in(cache):
    "Finished calls in a store, read from outside."
    path = Path(cache) / "store.sqlite"
    if not path.exists(): return 0
    with sqlite3.connect(path) as db:
        try: return db.execute("select count(*) from calls").fetchone()[0]
        except sqlite3.OperationalError: return 0


def kill_tree(process):
    "SIGKILL for the runner, papermill and the kernel, as a machine that goes down."
    tree = [process, *psutil.Process(process.pid).children(recursive=True)] if process.poll() is None else []
    for p in tree:
        try: p.kill()
        except psutil.NoSuchProcess: pass
    process.wait()


def killed_and_restarted(args, tmp, env, kills, longest, seed=0):
    "Kill a run at random moments, then let it finish; rows before the last start, and the last run's folder."
    rng = random.Random(seed)
    cache = {**os.environ, **env, "RUBRICLAB_CACHE_DIR": str(tmp / "cache")}
    for _ in range(kills):
        p = subprocess.Popen([COMMAND, *args, "--results-dir", str(tmp / "killed")], env=cache, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(1.5, longest))
        kill_tree(p)
    before = rows_in(tmp / "cache")
    done = command(*args, "--results-dir", tmp / "last", **env, RUBRICLAB_CACHE_DIR=str(tmp / "cache"))
    assert done.returncode == 0, done.stdout + done.stderr
    folder, = (tmp / "last" / "openrubrics").iterdir()
    used = json.loads((folder / "manifest.json").read_text())["engines"]
    computed = sum(e["computed"] for e in used if not e["role"].startswith("planted")) # all roles: what was computed is what is new in the store
    return before, rows_in(tmp / "cache"), folder, computed


def fake_run(tmp_path, prompts=60):
    write_rows(tmp_path / "pairs.jsonl", World(seed=5).pairs(prompts, per_prompt=2))
    return ["run", "openrubrics", "--recipe", "smoke", "--engine", "fake:world?seed=5", "-p", "data", str(tmp_path / "pairs.jsonl"), "-p", "prompts", str(prompts),
            "-p", "public_pairs", "0", "-p", "vote_prompts", "20", "-p", "attempts", "3"]


def check_fake(tmp_path, kills):
    args = fake_run(tmp_path)
    whole = command(*args, "--results-dir", tmp_path / "whole", RUBRICLAB_CACHE_DIR=str(tmp_path / "other"))
    assert whole.returncode == 0, whole.stdout + whole.stderr
    folder, = (tmp_path / "whole" / "openrubrics").iterdir()
    before, after, last, computed = killed_and_restarted(args, tmp_path, {}, kills, 5.0)
    assert (last / "items.jsonl").read_bytes() == (folder / "items.jsonl").read_bytes()
    assert computed == after - before, (before, after, computed)
    print(f"fake: {kills} kills, {before} calls finished before the last start, {after - before} computed after it, {after} in all")


def check_bundled(tmp_path, kills):
    args = ["run", "openrubrics", "--recipe", "smoke", "-p", "public_pairs", "0", "-p", "prompts", "3"]
    from rubriclab.engines.bundled import fetch
    model = fetch().parent # the model is shared, the stores are not
    for cache in ("cache", "other"):
        (tmp_path / cache).mkdir()
        (tmp_path / cache / "models").symlink_to(model)
    whole = command(*args, "--results-dir", tmp_path / "whole", RUBRICLAB_CACHE_DIR=str(tmp_path / "other"))
    assert whole.returncode == 0, whole.stdout + whole.stderr
    folder, = (tmp_path / "whole" / "openrubrics").iterdir()
    before, after, last, computed = killed_and_restarted(args, tmp_path, {}, kills, 25.0)
    assert computed == after - before
    flips, n = flipped(folder, last)
    print(f"bundled: {kills} kills, {before} calls finished before the last start, {after - before} after it; {len(flips)} of {n} verdicts flipped: {flips}")
    assert all(f["near_tie"] for f in flips), flips


def flipped(one, two):
    "Verdicts that differ between two runs, and whether floating point explains it (the margins differ by less than two tolerances; a written verdict must not flip)."
    read = lambda folder: [r for r in map(json.loads, open(folder / "items.jsonl")) if r["kind"] == "judgment"]
    flips, n = [], 0
    for a, b in zip(read(one), read(two), strict=True):
        for v, w in zip(a["verdicts"], b["verdicts"], strict=True):
            n += 1
            if v["winner"] != w["winner"]:
                flips.append({"arm": a["arm"], "pair": a["pair"], "margins": (v["margin"], w["margin"]), "near_tie": None not in (v["margin"], w["margin"]) and abs(v["margin"] - w["margin"]) < 4e-3})
    return flips, n


def test_a_killed_fake_run_ends_byte_for_byte_the_same(tmp_path): check_fake(tmp_path, 3)
def test_a_killed_run_of_the_bundled_model_repeats_nothing(tmp_path): check_bundled(tmp_path, 1)


if __name__ == "__main__":
    import tempfile
    for check in (check_fake, check_bundled):
        with tempfile.TemporaryDirectory() as d: check(Path(d), int(sys.argv[1]))
