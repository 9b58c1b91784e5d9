"""Batch commands on Ray: the same files as in one process, one store for all workers, errors in one line."""
import asyncio, json, os, re, subprocess, sys, time
from pathlib import Path
from types import SimpleNamespace
import psutil, pytest
from conftest import COMMAND, command

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from waiting import answered, waiting

ray = pytest.importorskip("ray", reason="needs the extra: pip install 'rubriclab[ray]'")
from rubriclab.core.types import Usage
from rubriclab.data.records import write_rows
from rubriclab.engines.fake import World
from rubriclab.engines.flow import Budget
from rubriclab.lab import cluster
from rubriclab.lab.c2 import planted_c2
from rubriclab.lab.cluster import Cluster, RemotePurse, Service

WORLD = "fake:world?seed=4"


def test_a_deadline_only_comes_nearer():
    "What a worker knows of the run's start is late by as long as the answer took."
    class Far:
        class take:
            waits = iter((0.0, 0.3, 0.0))
            @staticmethod
            async def remote(*args):
                since = time.monotonic() - begun
                await asyncio.sleep(next(Far.take.waits))
                return None, since
    async def asked():
        purse, starts = RemotePurse(Far, "api:toy", "me", Budget(seconds=60), None), []
        for n in range(3):
            await purse.take(n, 1, 1)
            starts.append(purse.start)
        return starts
    begun = time.monotonic()
    first, second, third = asyncio.run(asked())
    assert first >= second >= third and third - begun < 0.1


def test_a_ray_that_starts_here_ends_what_its_workers_started(monkeypatch):
    monkeypatch.delenv("RAY_process_group_cleanup_enabled", raising=False)
    monkeypatch.setattr(ray, "init", lambda **how: None)
    cluster._start("local")
    assert os.environ.pop("RAY_process_group_cleanup_enabled") == "1"


def test_folders_are_the_same_for_all_workers(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RUBRICLAB_PROMPTS_DIR", "mine")
    monkeypatch.setenv("RUBRICLAB_CACHE_DIR", "kept")
    assert [cluster.environment()[f"RUBRICLAB_{k}_DIR"] for k in ("PROMPTS", "CACHE")] == [str(tmp_path / "mine"), str(tmp_path / "kept")]
    monkeypatch.setenv("RUBRICLAB_CACHE_DIR", "~/kept")
    assert cluster.environment()["RUBRICLAB_CACHE_DIR"] == "~/kept" # each machine's own home
    assert cluster.on_all("vllm:a/b?adapter=mine&max_len=9") == f"vllm:a/b?adapter={tmp_path / 'mine'}&max_len=9"


@pytest.mark.parametrize("spec, gpus, wrong", [("hf:a/b", 0, True), ("vllm:a/b", 0, True), ("hf:a/b?device=cpu", 0, False), ("api:m@http://127.0.0.1:1", 0, False), ("hf:a/b", 0.5, False)])
def test_workers_that_are_promised_no_gpu_do_not_share_the_first(monkeypatch, spec, gpus, wrong):
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 8, "GPU": 8}}])
    if not wrong: return cluster._check_gpus(spec, gpus)
    with pytest.raises(ValueError, match="give --gpus 1"): cluster._check_gpus(spec, gpus)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 8}}])
    cluster._check_gpus(spec, gpus)


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
    "Every command here and on Ray, then one again, then one that is wrong; the folder and what both said."
    d = tmp_path_factory.mktemp("both")
    write_rows(d / "lists.jsonl", [{"id": "r1", "prompt": "Name a moon.", "responses": ["Titan", "Mars", "none"]}])
    ray = ("--ray", "local", "--workers", "2")
    todo = lambda where, more: [(what, files / source, d / where / name, *how, *more) for name, (what, source, *how) in COMMANDS.items()]
    here = several(todo("here", ()), d / "a")
    again = (*todo("there", ray)[list(COMMANDS).index("judge")][:2], d / "again.jsonl", *COMMANDS["judge"][2:], "--ray", "local", "--workers", "1:2") # a pool that may grow
    return d, here, several([*todo("there", ray), again, ("judge", d / "lists.jsonl", d / "out.jsonl", "-e", WORLD, *ray)], d / "b")


@pytest.mark.parametrize("name", COMMANDS)
def test_the_same_file_as_in_one_process(name, both):
    here, there = (both[0] / where / name for where in ("here", "there"))
    for part in ("pairs.jsonl", "dpo.jsonl", "verifier.jsonl", "report.md") if name == "c2" else ("",): assert (here / part).read_text() == (there / part).read_text(), part


def test_there_is_one_store_for_all_workers(both):
    d, _, said = both
    assert (d / "again.jsonl").read_text() == (d / "there/judge").read_text() and " 0 computed" in said.stdout.split(str(d / "there/rubricrag"))[-1], said.stdout


def test_two_roles_of_one_engine_are_counted_apart(both):
    _, *said = both
    here, there = ([re.findall(r"(\w+): ([\d,]+) calls", line) for line in x.stdout.splitlines() if " calls, " in line][:len(COMMANDS)] for x in said)
    assert here == there and [role for role, _ in here[0]] == ["writer", "filter"], (here, there)


def test_an_error_of_a_worker_is_one_line(both, tmp_path):
    _, _, said = both
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
        asked = answered(port)
        here = command("judge", files / "pairs.jsonl", tmp_path / "here.jsonl", *how, RUBRICLAB_CACHE_DIR=str(tmp_path / "a"))
    assert run.returncode == 0 and here.returncode == 0 and 30 <= killed < 180, (killed, wrong[-2000:])
    assert there.read_text() == (tmp_path / "here.jsonl").read_text() and "90 records, 0 failed" in said
    winners = {frozenset(v["winner"] for v in json.loads(line)["verdicts"]) for line in open(there)}
    assert winners == {frozenset({"chosen"}), frozenset({"rejected"}), frozenset({"chosen", "rejected"})} # so that one reply in the place of another shows
    assert 180 <= asked <= 180 + 8 # all, and again no more than the killed worker had under way or had not handed on


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


def _kill_who_holds_vllm(run): # as soon as vLLM runs in a worker; whether vLLM's process then ended as well
    end = time.time() + 300
    while time.time() < end and run.poll() is None:
        for p in _children(run.pid):
            if _name(p).startswith("VLLM::Engine"):
                time.sleep(1.0)
                p.parent().kill()
                return not psutil.wait_procs([p], 30)[1] or p.status() == psutil.STATUS_ZOMBIE # nobody may be there to reap it
        time.sleep(0.1)
    return None


ON_A_GPU = """
import ray, sys
ray.init("local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False) # Ray counts a GPU; nothing looks for it
from rubriclab.lab.cli import main
main(sys.argv[1:])
"""


def test_vllm_inside_of_a_worker_that_has_a_part_of_a_gpu(files, tmp_path):
    from vllm_env import vllm_python
    if (python := vllm_python()) is None: pytest.skip("no environment with vLLM; make it with: python tests/vllm_env.py")
    from rubriclab.data.records import read_pairs
    from rubriclab.engines.bundled import fetch
    from rubriclab.engines.engine import engine
    from rubriclab.judges.pairwise import judge
    rows = [json.loads(line) for line in open(files / "pairs.jsonl")][:6]
    write_rows(tmp_path / "pairs.jsonl", rows)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "models").symlink_to(fetch().parent) # vLLM's environment has nothing that could unpack them
    spec = "vllm:smollm2?dtype=float32&max_len=2048&memory=0.25"
    run = subprocess.Popen([python, "-c", ON_A_GPU, "judge", tmp_path / "pairs.jsonl", tmp_path / "out.jsonl", "-e", spec, "--method", "direct", "--ray", "local", "--workers", "1", "--gpus", "0.5"],
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "RUBRICLAB_CACHE_DIR": str(tmp_path / "cache"), "RAY_AUTH_MODE": "disabled", "RAY_process_group_cleanup_enabled": "1"})
    try:
        ended = _kill_who_holds_vllm(run)
        said, wrong = run.communicate(timeout=600)
    finally: run.kill()
    assert run.returncode == 0, wrong[-3000:]
    assert ended # else its memory would be missing to the vLLM that took its place
    there = [json.loads(line) for line in open(tmp_path / "out.jsonl")]
    here = judge(list(read_pairs(tmp_path / "pairs.jsonl")), engine("smollm2?dtype=float32", store=False), method="direct")
    assert len(there) == 6 and {v["engine"] for r in there for v in r["verdicts"]} == {"vllm:smollm2"}
    assert max(abs(a["margin"] - b.margin) for r, j in zip(there, here) for a, b in zip(r["verdicts"], j.verdicts)) < 5e-3


def test_a_budget_is_that_of_the_run(files, tmp_path):
    with waiting(0.05) as port: # 204 tokens a reply
        spec = f"api:toy@http://127.0.0.1:{port}?tokens=20000&concurrency=2"
        done = command("judge", files / "pairs.jsonl", tmp_path / "out.jsonl", "-e", spec, "--method", "direct", "--readout", "generate", "--orders", "both", "--max-tokens", "8", "--ray", "local", "--workers", "1:8", RUBRICLAB_CACHE_DIR=str(tmp_path), RAY_AUTH_MODE="disabled")
    assert done.returncode == 0, done.stderr[-2000:]
    verdicts = [v for line in open(tmp_path / "out.jsonl") for v in json.loads(line)["verdicts"]]
    answered = sum(not v.get("failure") for v in verdicts)
    assert len(verdicts) == 180 and 60 <= answered <= 20000 // 204 and {v["failure"]["reason"] for v in verdicts if v.get("failure")} == {"budget"} # fewer than eight workers find room


def _purses(budget, workers=("w1", "w2")): # of workers that share a service, which is here
    service = Service(None)
    there = SimpleNamespace(take=SimpleNamespace(remote=service.take), settle=SimpleNamespace(remote=service.settle))
    return service, *(RemotePurse(there, "api:toy", w, budget, None) for w in workers)


def test_workers_pay_from_one_purse():
    async def paying():
        service, a, b = _purses(Budget(tokens=100))
        assert await a.take(one := object(), 40, 20) is None
        waits = asyncio.create_task(b.take(two := object(), 40, 20))
        await asyncio.sleep(0.01)
        assert not waits.done() # 60 are held back, and may come out cheaper
        a.settle(one, Usage(prompt_tokens=20))
        assert await waits is None
        b.settle(two, None)
        poor = await a.take(one, 40, 20)
        assert poor.reason == "budget" and "80 tokens" in poor.detail, poor
        assert await b.take(two, 10, 10) is None
        service.begin("w2", 0) # it was killed, and begins again
        assert "100 tokens" in (await a.take(one, 1, 1)).detail
    asyncio.run(paying())


def test_what_a_killed_worker_waited_for_is_not_held():
    async def paying():
        service, a, b = _purses(Budget(tokens=100))
        assert await a.take(one := object(), 40, 20) is None
        waits = asyncio.create_task(b.take(object(), 40, 20))
        await asyncio.sleep(0.01)
        service.begin("w2", 0)
        a.settle(one, Usage())
        await waits
        assert not service.purses["api:toy"].held and await a.take(one, 50, 50) is None
    asyncio.run(paying())


def test_a_deadline_is_that_of_the_run():
    async def paying():
        service, a, b = _purses(Budget(seconds=60))
        assert await a.take(one := object(), 1, 1) is None and b.left() == 60
        service.purses["api:toy"].start -= 100 # the first request was so long ago
        assert "deadline of 60 s" in (await b.take(object(), 1, 1)).detail and b.left() < 0
    asyncio.run(paying())


DEADLY = """
import os
from rubriclab.lab.batch import Task
from rubriclab.lab.cluster import Cluster
def make(engines):
    def step(items, first):
        if 5 in items: os._exit(1)
        return [{"n": n} for n in items]
    return step
cluster = Cluster("local", store=False)
try:
    for lines in cluster.run(Task(make, {"judge": cluster.engine("fake:world?seed=4")}), iter([(0, [0, 1, 2]), (3, [3, 4, 5]), (6, [6])])): print(lines)
except RuntimeError as e: print(e)
"""


def test_a_block_that_ends_every_worker_ends_the_run(tmp_path):
    done = subprocess.run([sys.executable, "-c", DEADLY], capture_output=True, text=True, timeout=400, env={**os.environ, "RUBRICLAB_CACHE_DIR": str(tmp_path), "RAY_AUTH_MODE": "disabled"})
    said = [line for line in done.stdout.splitlines() if not line.startswith(("\x1b", "("))] # Ray's own go between
    assert done.returncode == 0 and said[0] == "[{'n': 0}, {'n': 1}, {'n': 2}]" and said[1].startswith("records 4 to 6: 4 workers ended while they did them") and len(said) == 2, (done.stdout, done.stderr[-2000:])


def test_a_worker_that_fits_no_machine(monkeypatch, capsys):
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 8.0, "GPU": 1.0}}, {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 1.0}}, {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}])
    monkeypatch.setattr(cluster, "_service", lambda path: None)
    with pytest.raises(ValueError, match="needs 2 GPUs and 1 CPU, and Ray sees 1 GPU and 8 CPUs on this machine"): Cluster("local", gpus=2)
    with pytest.raises(ValueError, match="needs 0 GPUs and 9 CPUs"): Cluster("local", cpus=9)
    Cluster("local", gpus=1)
    assert not capsys.readouterr().err
    Cluster("10.0.0.1:6379", gpus=2) # it may grow
    assert capsys.readouterr().err.splitlines() == ["waiting for a machine with 2 GPUs and 1 CPU for a worker; now the cluster has none larger than 1 GPU and 8 CPUs"]
