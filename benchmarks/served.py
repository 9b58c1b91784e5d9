"""What the api engine costs beside the server: 10,000 requests to a fake server that takes a second for each and 256 at once.

    python benchmarks/served.py            three runs of each
    python benchmarks/served.py --quick    2,000 requests, one run
    python benchmarks/served.py --small    64 requests, 8 at once for .05 s, one run: shows only that it runs

`queue`: what comes beyond 256 waits at the server. `refuse`: it is refused with 429, and the client, which is allowed 2,048, must find out. The ideal time is requests / 256 seconds. CPU time is that of the
client's process, all of it: prompts, keys, connections, replies, with and without the store. `refused` counts the replies 429. Results are the caller's and take memory as long as they are kept; what the engine keeps shows where the same requests come
in four calls whose results are dropped. Bars: 1.15 and 1.5 of the ideal time; 1 ms of CPU a request; after the first call at most 1 KiB more for a request.
"""
import json, resource, statistics, subprocess, sys, tempfile, time
from pathlib import Path
from typing import NamedTuple
from bars import holds, leave
from waiting import waiting

ROOM, SECONDS = 256, 1.0


def client(port: int, n: int, bound: int, stored: bool, part: int) -> dict[str, float]: # `part` requests a call
    "One run in a process of its own."
    from rubriclab.core.store import Store
    from rubriclab.core.types import Chat, Completion
    from rubriclab.engines.api import open_backend
    from rubriclab.engines.engine import Engine
    with tempfile.TemporaryDirectory() as d:
        e = Engine(open_backend(f"toy@http://127.0.0.1:{port}", concurrency=str(bound)), Store(Path(d, "store.sqlite")) if stored else None, progress=False)
        chats = [Chat.user(f"Request {i}: which of two answers is better?\n" + "It says one thing and then another. " * 20) for i in range(n)]
        before, start, cpu = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter(), time.process_time()
        for at in range(0, n, part):
            found = e.generate(chats[at:at + part], max_tokens=8)
            assert all(isinstance(r, Completion) for r, in found), next(r for r, in found if not isinstance(r, Completion))
        wall, cpu = time.perf_counter() - start, time.process_time() - cpu
        refused = e.backend.running.gate.refused # closing forgets it
        e.close()
    return {"seconds": wall, "cpu_ms": cpu / n * 1e3, "mib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, "refused": refused}


class Form(NamedTuple):
    "How large a benchmark is."
    requests: int
    runs: int
    room: int = ROOM
    seconds: float = SECONDS


FORMS = {"--quick": Form(2_000, 1), "--small": Form(64, 1, room=8, seconds=0.05)}


def measure(form: Form, kind: str, n: int, bound: int, stored: bool, part: int) -> dict[str, float]:
    with waiting(form.seconds, form.room, kind == "refuse") as port:
        done = subprocess.run([sys.executable, __file__, "--client", port, str(n), str(bound), str(int(stored)), str(part)], stdout=subprocess.PIPE, text=True) # what it says went wrong is read as it comes
    if done.returncode: sys.exit(f"{kind}, {n:,} requests: the client failed")
    found = json.loads(done.stdout.splitlines()[-1])
    return {"ratio": found["seconds"] / (n / form.room * form.seconds), **found}


def main(form: Form) -> None:
    n, room, met, grown = form.requests, form.room, [], {}
    print(f"{'server':<8}{'store':<7}{'requests':>9}{'a call':>8}{'of the ideal time':>19}{'CPU ms a request':>18}{'MiB more':>10}{'refused':>9}")
    for kind, bound, stored, count, part in (("queue", room, False, n, n), ("queue", room, True, n, n), ("queue", room, True, n // 4, n // 4), ("queue", room, True, n, n // 4), ("refuse", 8 * room, False, n, n)):
        found = [measure(form, kind, count, bound, stored, part) for _ in range(form.runs)]
        middle = {k: statistics.median(f[k] for f in found) for k in found[0]}
        print(f"{kind:<8}{'yes' if stored else 'no':<7}{count:>9,}{part:>8,}{middle['ratio']:>19.3f}{middle['cpu_ms']:>18.3f}{middle['mib']:>10.0f}{middle['refused']:>9,.0f}", flush=True)
        if form in FORMS.values(): continue # too small for its bars
        if part < n: grown[count] = middle["mib"]
        else: met += [holds(f"{kind}, of the ideal time", middle["ratio"], most=1.15 if kind == "queue" else 1.5), holds("CPU ms a request", middle["cpu_ms"], most=1.0)]
    if grown: met.append(holds("KiB more for each further request", 1024 * (grown[n] - grown[n // 4]) / (n - n // 4), most=1.0))
    leave(met)


if __name__ == "__main__":
    if "--client" in sys.argv: print(json.dumps(client(int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5] == "1", int(sys.argv[6]))))
    else: main(next((form for name, form in FORMS.items() if name in sys.argv), Form(10_000, 3)))
