"""How the batch commands grow with workers on Ray, where an engine waits for a server.

    python benchmarks/cluster.py            1, 2 and 4 workers, three runs
    python benchmarks/cluster.py --quick    fewer records, one run

A fake server answers after half a second, and every worker may have eight requests under way. Counted are finished calls a second between the first tenth of them and the last, by the store that all workers share: starting
Ray and its workers takes some seconds, whatever comes after. Bars: 2 and 4 workers at least 1.8 and 3.4 times one.
"""
import os, statistics, subprocess, sys, tempfile, time
from pathlib import Path
from bars import holds, leave
from waiting import waiting

SECONDS, AT_ONCE = 0.5, 8


def rate(workers: int, pairs: int, port: str) -> float: # finished calls a second
    from rubriclab.core.store import Store
    from rubriclab.data.records import write_rows
    from rubriclab.engines.fake import World
    with tempfile.TemporaryDirectory() as d:
        write_rows(Path(d, "pairs.jsonl"), World(seed=4).pairs(pairs, per_prompt=1))
        env = {**os.environ, "RUBRICLAB_CACHE_DIR": d, "RAY_AUTH_MODE": "disabled"}
        command = [str(Path(sys.executable).with_name("rubriclab")), "judge", f"{d}/pairs.jsonl", f"{d}/out.jsonl", "-e", f"api:toy@http://127.0.0.1:{port}?concurrency={AT_ONCE}", "--method", "direct", "--readout", "generate", "--orders", "both",
                   "--ray", "local", "--workers", str(workers)]
        code = "import ray, sys; ray.init('local', num_cpus=8, include_dashboard=False, log_to_driver=False); from rubriclab.lab.cli import main; main(sys.argv[1:])" # as many places as workers: they only wait
        running = subprocess.Popen([sys.executable, "-c", code, *command[1:]], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        seen = []
        while running.poll() is None:
            if Path(d, "store.sqlite").exists(): seen.append((time.perf_counter(), len(Store(Path(d, "store.sqlite")))))
            time.sleep(0.1)
        if running.returncode: raise RuntimeError(running.stderr.read()[-2000:])
    low, high = (next((t, n) for t, n in seen if n >= share * 2 * pairs) for share in (0.1, 0.9))
    return (high[1] - low[1]) / (high[0] - low[0])


def main(quick: bool) -> None:
    with waiting(SECONDS) as port: rounds = [{w: rate(w, 160 * w if quick else 400 * w, port) for w in (1, 2, 4)} for _ in range(1 if quick else 3)]
    print(f"{'workers':>7}{'calls a second':>16}{'times one worker':>18}")
    for w in (1, 2, 4): print(f"{w:>7}{statistics.median(r[w] for r in rounds):>16.1f}{statistics.median(r[w] / r[1] for r in rounds):>18.2f}")
    met = [holds(f"{w} workers, times one", statistics.median(r[w] / r[1] for r in rounds), least=bar) for w, bar in ((2, 1.8), (4, 3.4))]
    if not quick: leave(met)


if __name__ == "__main__": main("--quick" in sys.argv)
