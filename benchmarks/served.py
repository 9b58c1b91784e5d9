"""What the api engine costs beside the server: 10,000 requests to a fake server that takes a second for each and 256 at once.

    python benchmarks/served.py            three runs of each
    python benchmarks/served.py --quick    2,000 requests, one run

`queue`: what comes beyond 256 waits at the server. `refuse`: it is refused with 429, and the client, which is allowed 2,048, must find out. The ideal time is requests / 256 seconds. CPU time is that of the
client's process, all of it: prompts, keys, connections, replies, with and without the store. Bars: 1.15 and 1.5 of the ideal time; 1 ms of CPU a request; no memory that grows with the requests.
"""
import json, resource, statistics, subprocess, sys, tempfile, time
from pathlib import Path
from waiting import waiting

ROOM, SECONDS = 256, 1.0


def client(port: int, n: int, bound: int, stored: bool) -> dict[str, float]:
    "One run in a process of its own."
    from rubriclab.core.store import Store
    from rubriclab.core.types import Chat, Completion
    from rubriclab.engines.api import open_backend
    from rubriclab.engines.engine import Engine
    with tempfile.TemporaryDirectory() as d:
        e = Engine(open_backend(f"toy@http://127.0.0.1:{port}", concurrency=str(bound)), Store(Path(d, "store.sqlite")) if stored else None, progress=False)
        chats = [Chat.user(f"Request {i}: which of two answers is better?\n" + "It says one thing and then another. " * 20, prefill="Winner:") for i in range(n)]
        before, start, cpu = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter(), time.process_time()
        found = e.generate(chats, max_tokens=8)
        wall, cpu = time.perf_counter() - start, time.process_time() - cpu
        e.close()
        assert all(isinstance(r, Completion) for r, in found)
    return {"ratio": wall / (n / ROOM * SECONDS), "cpu_ms": cpu / n * 1e3, "mib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, "refused": e.backend.running.gate.refused if e.backend.running else 0}


def measure(kind: str, n: int, bound: int, stored: bool) -> dict[str, float]:
    with waiting(SECONDS, ROOM, kind == "refuse") as port:
        done = subprocess.run([sys.executable, __file__, "--client", port, str(n), str(bound), str(int(stored))], check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main(quick: bool) -> None:
    n, runs = (2_000, 1) if quick else (10_000, 3)
    print(f"{'server':<8}{'store':<7}{'requests':>9}{'of the ideal time':>19}{'CPU ms a request':>18}{'MiB more':>10}")
    for kind, bound, stored, count in (("queue", ROOM, False, n), ("queue", ROOM, True, n), ("queue", ROOM, True, n // 4), ("refuse", 2048, False, n)):
        found = [measure(kind, count, bound, stored) for _ in range(runs)]
        middle = {k: statistics.median(f[k] for f in found) for k in found[0]}
        print(f"{kind:<8}{'yes' if stored else 'no':<7}{count:>9,}{middle['ratio']:>19.3f}{middle['cpu_ms']:>18.3f}{middle['mib']:>10.0f}", flush=True)


if __name__ == "__main__":
    if "--client" in sys.argv: print(json.dumps(client(int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5] == "1")))
    else: main("--quick" in sys.argv)
