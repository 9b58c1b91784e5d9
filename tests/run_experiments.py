"""Runs every paper notebook in smoke mode, as a user would, and checks that each leaves a whole run folder; then every tutorial."""
import json, os, subprocess, sys, tempfile, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ALONE = {**os.environ, "OMP_NUM_THREADS": "1"} # two at a time
COMMAND = str(Path(sys.executable).with_name("rubriclab"))


def smoke(name: str, results: Path) -> str | None:
    start = time.monotonic()
    done = subprocess.run([COMMAND, "run", name, "--recipe", "smoke", "--results-dir", str(results)], text=True, capture_output=True, env=ALONE)
    if done.returncode: return f"exit {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    folder, = (results / name).iterdir()
    lost = [f for f in ("notebook.ipynb", "metrics.json", "items.jsonl", "manifest.json") if not (folder / f).is_file()]
    if lost: return f"the run left no {', '.join(lost)}"
    manifest = json.loads((folder / "manifest.json").read_text())
    print(f"smoke {name}: {manifest['state']}, {manifest['items']} items, {len(list((folder / 'figures').iterdir()))} figures, {time.monotonic() - start:.0f} s", flush=True)
    return None


def tutorial(path: Path, results: Path) -> str | None:
    start = time.monotonic()
    from rubriclab.lab.run import recipes
    small = ["--recipe", "smoke"] if "smoke" in recipes(path.stem) else []
    done = subprocess.run([COMMAND, "run", str(path), *small, "--results-dir", str(results)], text=True, capture_output=True, cwd=results, env=ALONE)
    if done.returncode: return f"exit {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    print(f"tutorial {path.stem}: {time.monotonic() - start:.0f} s", flush=True)
    return None


def main() -> int:
    tutorials = sorted((Path(__file__).resolve().parents[1] / "nbs" / "tutorials").glob("*.ipynb"))
    from rubriclab.lab.run import experiments
    with tempfile.TemporaryDirectory() as d:
        with ThreadPoolExecutor(2) as pool:
            jobs = {p.stem: pool.submit(tutorial, p, Path(d)) for p in tutorials} | {n: pool.submit(smoke, n, Path(d)) for n in reversed(experiments())} # the longest are tutorials and the last experiments
            errors = {n: e for n, job in jobs.items() if (e := job.result())}
    for n, e in errors.items(): print(f"{n} failed: {e}")
    print(f"{len(experiments())} experiments and {len(tutorials)} tutorials, {len(errors)} failed")
    return 1 if errors else 0


if __name__ == "__main__": sys.exit(main())
