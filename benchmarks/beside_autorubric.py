"""Grading beside autorubric 1.6.1, on one vLLM server with the bundled model on a CPU: 40 answers, 10 criteria.

    python benchmarks/beside_autorubric.py            three rounds (the server: python tests/vllm_env.py; autorubric gets an environment of its own in .venv-autorubric)
    python benchmarks/beside_autorubric.py --quick    one round of 8 answers

Sides, in random order, the server's prefix cache emptied before each: both of its modes and both of ours with a written reason and label, ours by log-probabilities, and the requests
of our mode with a written label a criterion sent by a bare client. What counts is graded answers a second: a small model's replies are often cut off or hold no label, and both libraries score an answer by the criteria that they could read (ours with
policy="exclude"); an answer is graded where it has a score and at least one criterion was read. Beside it stand criteria with a label a second, and the mean score in the first round. All of it greedy, with the same limit of tokens a criterion. Tokens are
the server's own counters. Bars, in graded answers a second: ours written is quicker than its better mode; log-probabilities are at least 5 times its per-criterion mode. And our written requests take at most 1/.9 of the bare client's time.
"""
import asyncio, json, math, os, random, re, statistics, subprocess, sys, tempfile, time, urllib.request
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from bars import holds, leave

ROOT = Path(__file__).resolve().parents[1]
PEER = ROOT / ".venv-autorubric"
TOKENS = 96 # a criterion's reason and label
CRITERIA = ["The response does everything that the request asks.", "The response adds nothing that was not asked for.", "The response keeps every limit on form or length that the request sets.",
            "Every statement of the response is true.", "The response is written in plain words.", "The response is free of spelling errors.", "The response can be understood without the request.",
            "The response begins with its most important point.", "The response speaks in a tone that suits the request.", "The response ends where its content ends."]


def answers(n): # each with its request
    rows = [json.loads(line) for line in open(ROOT / "data/mini/pairs.jsonl", encoding="utf-8")]
    return [{"prompt": r["prompt"], "response": r[side]} for r in rows for side in ("chosen", "rejected")][:2 * n:2]


def peer_main():
    "Runs in autorubric's environment: its report of one mode, as JSON."
    from autorubric import Criterion, LLMConfig, Rubric
    from autorubric.graders import CriterionGrader
    url, mode, rows = json.loads(sys.stdin.readline())
    rubric = Rubric([Criterion(name=f"c{k}", weight=1.0, requirement=c) for k, c in enumerate(CRITERIA)])
    limit = TOKENS * (len(CRITERIA) if mode == "per_item" else 1)
    judge = LLMConfig(model="hosted_vllm/smollm2", api_base=f"{url}/v1", api_key="none", temperature=0.0, max_tokens=limit, timeout=3600.0)
    grader = CriterionGrader(judge_model_config=judge, llm_calls=mode)
    async def grade(): return await asyncio.gather(*(rubric.grade(to_grade=r["response"], grader=grader, query=r["prompt"]) for r in rows))
    asyncio.run(rubric.grade(to_grade="Titan.", grader=grader, query="Name a moon.")) # its first call loads what it needs
    print("ready", flush=True)
    sys.stdin.readline() # what is measured begins here
    start = time.perf_counter()
    reports = asyncio.run(grade())
    failed = [sum(any(v.is_error for v in c.votes) for c in r.report or ()) for r in reports]
    print(json.dumps({"seconds": time.perf_counter() - start, "failed": failed, "scores": [r.score for r in reports]}))


def peer_python():
    python = PEER / "bin/python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", PEER], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "autorubric==1.6.1"], check=True)
    return python


def server():
    "The bundled model behind vLLM's server."
    sys.path.insert(0, str(ROOT / "tests"))
    from vllm_env import serving, vllm_python
    from rubriclab.engines.bundled import fetch
    if (python := vllm_python()) is None: sys.exit("no environment with vLLM; make it with: python tests/vllm_env.py")
    return serving(python, fetch(), "--max-model-len", 4096, "--gpu-memory-utilization", 0.3, "--enable-prompt-tokens-details", VLLM_SERVER_DEV_MODE="1")


def counters(url): # tokens of prompts and generated, so far
    text = urllib.request.urlopen(f"{url}/metrics").read().decode()
    return [sum(float(x) for x in re.findall(rf"^vllm:{name}_total\{{[^}}]*\}} (\S+)$", text, re.M)) for name in ("prompt_tokens", "generation_tokens")]


def ours(url, rows, **how):
    from rubriclab.core.types import Item
    from rubriclab.engines.engine import Engine
    from rubriclab.engines.api import open_backend
    from rubriclab.judges.pointwise import grade
    e = Engine(open_backend(f"smollm2@{url}/v1"), progress=False)
    items = [Item(id=str(k), prompt=r["prompt"], response=r["response"], rubric=CRITERIA) for k, r in enumerate(rows)]
    limit = TOKENS * (len(CRITERIA) if how.get("mode") == "per_item" else 1)
    start = time.perf_counter()
    grades = grade(items, e, **{"max_tokens": limit, "policy": "exclude", **how})
    took = time.perf_counter() - start
    e.close()
    return {"seconds": took, "failed": [len(g.failures) for g in grades], "scores": [g.score for g in grades]}


def recorded(url, rows, **how): # the bodies of our requests
    from rubriclab.engines import api
    bodies, send = [], api.ApiBackend.once
    async def once(self, call, method, url, body, read):
        if "max_tokens" in body: bodies.append((url, json.loads(json.dumps(body))))
        return await send(self, call, method, url, body, read)
    api.ApiBackend.once = once
    try: ours(url, rows, **how)
    finally: api.ApiBackend.once = send
    return bodies


def bare(bodies): # sent by a client that does nothing else
    import aiohttp
    async def all_of_them():
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=256), timeout=aiohttp.ClientTimeout(total=None)) as http:
            async def one(url, body):
                async with http.post(url, json=body, raise_for_status=True) as r: await r.json()
            await asyncio.gather(*(one(u, b) for u, b in bodies))
    start = time.perf_counter()
    asyncio.run(all_of_them())
    return {"seconds": time.perf_counter() - start, "failed": [], "scores": []}


@contextmanager
def peer(url, rows, mode):
    "Gives what to call, once its process is warm."
    with tempfile.TemporaryFile("w+") as said, subprocess.Popen([peer_python(), __file__, "--peer"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True, env={**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}) as p:
        def tell(line):
            p.stdin.write(line + "\n")
            p.stdin.flush()
            while (answer := p.stdout.readline()) and not answer.startswith(("ready", "{")): pass
            if not answer: said.seek(0); sys.exit(said.read()[-3000:])
            return answer
        tell(json.dumps([url, mode, rows]))
        yield lambda: json.loads(tell("go"))


def measured(url, side):
    with side() as run:
        urllib.request.urlopen(urllib.request.Request(f"{url}/reset_prefix_cache", method="POST"))
        before = counters(url)
        found = run()
        return found | dict(zip(("read", "written"), (b - a for a, b in zip(before, counters(url)))))


def main(quick):
    rows, rounds, rng = answers(8 if quick else 40), 1 if quick else 3, random.Random(0)
    with server() as url:
        written = dict(readout="generate", mode="per_criterion")
        bodies = recorded(url, rows, **written) # warms the server, too
        at_once = lambda f, *args, **how: partial(nullcontext, partial(f, *args, **how))
        sides = {"autorubric per criterion": partial(peer, url, rows, "per_criterion"), "autorubric per item": partial(peer, url, rows, "per_item"),
                 "ours written, per criterion": at_once(ours, url, rows, **written), "ours written, per item": at_once(ours, url, rows, readout="generate", mode="per_item"),
                 "bare client, our requests": at_once(bare, bodies), "ours, log-probabilities": at_once(ours, url, rows)}
        found = {name: [] for name in sides}
        for _ in range(rounds):
            for name in rng.sample(list(sides), len(sides)):
                found[name].append(measured(url, sides[name]))
                print(f"{name}: {found[name][-1]['seconds']:.1f} s, {sum(found[name][-1]['failed'])} without a label", file=sys.stderr, flush=True) # a round takes long
    met = report(found, len(rows), rounds)
    if not quick: leave(met)


def labeled(r): return len(r["failed"]) * len(CRITERIA) - sum(r["failed"]) # criteria


def scores(r): return [x for x, lost in zip(r["scores"], r["failed"]) if x is not None and lost < len(CRITERIA)] # of the answers that were graded


def said(found): return f"{statistics.fmean(found):.3f} (n={len(found)})" if found else "none"


def ratios(ours, theirs): return [a / b if b else math.inf for a, b in zip(ours, theirs)] # round by round


def spread(each): return f"{statistics.median(each):.2f}, {min(each):.2f} to {max(each):.2f}"


def report(found, n, rounds): # which bars are met
    middle = lambda name, of: statistics.median(map(of, found[name]))
    answers, criteria = lambda r: len(scores(r)) / r["seconds"], lambda r: labeled(r) / r["seconds"]
    print(f"{n} answers, {len(CRITERIA)} criteria, {rounds} rounds; medians\n{'':<28} {'seconds':>8} {'graded':>7} {'graded a second':>16} {'labeled':>8} {'failed':>7} {'labeled a second':>17} {'score':>14} {'tokens read':>12} {'written':>8}")
    for name in found:
        graded = f"{middle(name, lambda r: len(scores(r))):>7g} {middle(name, answers):>16.3f} {middle(name, labeled):>8g} {middle(name, lambda r: sum(r['failed'])):>7g} {middle(name, criteria):>17.2f} {said(scores(found[name][0])):>14}" if found[name][0]["failed"] else f"{'':>74}"
        print(f"{name:<28} {middle(name, lambda r: r['seconds']):>8.1f} {graded} {middle(name, lambda r: r['read']):>12,.0f} {middle(name, lambda r: r['written']):>8,.0f}")
    quickest = lambda who: max((f"{who} per criterion", f"{who} per item"), key=lambda name: middle(name, answers))
    mine, better = quickest("ours written,"), quickest("autorubric")
    bars = []
    for text, a, b, bar in ((f"{mine} over {better}", mine, better, 1.0), ("log-probabilities over autorubric per criterion", "ours, log-probabilities", "autorubric per criterion", 5.0)):
        by = lambda of: ratios(map(of, found[a]), map(of, found[b]))
        print(f"{text}: {spread(by(answers))} in graded answers a second; {spread(by(criteria))} in labeled criteria a second")
        bars.append((text, by(answers), bar))
    seconds = lambda name: [r["seconds"] for r in found[name]]
    bars.append((text := "our written requests over the bare client", ratios(seconds("bare client, our requests"), seconds("ours written, per criterion")), 0.9))
    print(f"{text}: {spread(bars[-1][1])} in requests a second")
    return [holds(text, statistics.median(each), least=bar) for text, each, bar in bars]


if __name__ == "__main__": peer_main() if "--peer" in sys.argv else main("--quick" in sys.argv)
