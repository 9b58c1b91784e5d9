"""Batch commands on Ray: the same files as in one process, whatever happens to a worker."""
import json, os, secrets, signal, subprocess, sys, time
import pytest
from conftest import COMMAND, command

pytest.importorskip("ray", reason="needs the extra: pip install 'rubriclab[ray]'")
import psutil
from rubriclab.core.store import Store
from rubriclab.data.records import write_rows
from rubriclab.engines.fake import World
from rubriclab.lab.c2 import planted_c2

WORLD = "fake:world?seed=4"


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    "A cluster of this machine, on loopback, that the commands find by its address."
    import socket
    with socket.socket() as s: s.bind(("127.0.0.1", 0)); port = s.getsockname()[1]
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)} # of this cluster and of the commands that find it
    started = subprocess.run([*ray, "start", "--head", f"--port={port}", "--node-ip-address=127.0.0.1", "--num-cpus=4", "--include-dashboard=false", "--disable-usage-stats"], capture_output=True, text=True, timeout=120)
    assert started.returncode == 0, started.stdout + started.stderr
    yield f"127.0.0.1:{port}"
    for p in psutil.process_iter(["cmdline"]): # its own processes: they name its port, or its head does
        if any(f"127.0.0.1:{port}" in c or f"--port={port}" in c or f"--gcs_server_port={port}" in c for c in p.info["cmdline"] or ()):
            for q in (*p.children(recursive=True), p):
                try: q.kill()
                except psutil.NoSuchProcess: pass
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"): del os.environ[name]


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
    "rubricrag": ("rubricrag", "prompts.jsonl", "--generator", WORLD, "--judge", "none", "--strategy", "zero_shot", "--matcher", "words"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_same_file_as_in_one_process(name, head, files, tmp_path):
    what, source, *how = COMMANDS[name]
    here = command(what, files / source, tmp_path / "here.jsonl", *how, RUBRICLAB_CACHE_DIR=str(tmp_path / "a"))
    there = command(what, files / source, tmp_path / "there.jsonl", *how, "--ray", head, "--workers", "2", RUBRICLAB_CACHE_DIR=str(tmp_path / "b"))
    assert (here.returncode, there.returncode) == (0, 0), here.stderr[-2000:] + there.stderr[-2000:]
    assert (tmp_path / "here.jsonl").read_text() == (tmp_path / "there.jsonl").read_text()
    if name != "judge": return
    again = command(what, files / source, tmp_path / "again.jsonl", *how, "--ray", head, "--workers", "2", RUBRICLAB_CACHE_DIR=str(tmp_path / "b"))
    assert again.returncode == 0 and " 0 computed" in again.stdout, again.stdout # one store for all of them


def test_contrasts_leave_their_files(head, files, tmp_path):
    how = ("-e", "fake:world?seed=4", "--k", "4", "--rounds", "1")
    here = command("c2", files / "c2.jsonl", tmp_path / "here", *how, RUBRICLAB_CACHE_DIR=str(tmp_path / "a"))
    there = command("c2", files / "c2.jsonl", tmp_path / "there", *how, "--ray", head, "--workers", "2", RUBRICLAB_CACHE_DIR=str(tmp_path / "b"))
    assert (here.returncode, there.returncode) == (0, 0), here.stderr[-2000:] + there.stderr[-2000:]
    for name in ("pairs.jsonl", "dpo.jsonl", "verifier.jsonl", "report.md"): assert (tmp_path / "here" / name).read_text() == (tmp_path / "there" / name).read_text(), name


def test_an_error_of_a_worker_is_one_line(head, files, tmp_path):
    write_rows(tmp_path / "lists.jsonl", [{"id": "r1", "prompt": "Name a moon.", "responses": ["Titan", "Mars", "none"]}])
    done = command("judge", tmp_path / "lists.jsonl", tmp_path / "out.jsonl", "-e", WORLD, "--ray", head, RUBRICLAB_CACHE_DIR=str(tmp_path / "a"))
    assert done.returncode == 2 and "record 'r1' is a ranking" in done.stderr and "Traceback" not in done.stderr, done.stderr[-1500:]
    for how, says in ((("--ray", "127.0.0.1:1"), "no Ray cluster at '127.0.0.1:1'"), (("--ray", head, "--workers", "none"), "give a number such as 4"), (("--ray", head, "-e", "fake:world?sed=4"), "has no option 'sed'")):
        done = command("judge", files / "pairs.jsonl", tmp_path / "out.jsonl", "-e", WORLD, *how, RUBRICLAB_CACHE_DIR=str(tmp_path / "a"))
        assert done.returncode == 2 and says in done.stderr, done.stderr[-1500:]


def workers(): return [p for p in psutil.process_iter(["name", "cmdline"]) if "MapWorker" in " ".join(p.info["cmdline"] or ())]


def test_a_worker_that_is_killed_loses_nothing(head, tmp_path):
    write_rows(tmp_path / "pairs.jsonl", World(seed=4).pairs(4000, per_prompt=1))
    how = ("-e", WORLD, "--method", "direct")
    here = command("judge", tmp_path / "pairs.jsonl", tmp_path / "here.jsonl", *how, RUBRICLAB_CACHE_DIR=str(tmp_path / "a"))
    assert here.returncode == 0, here.stderr[-2000:]
    env = {**os.environ, "RUBRICLAB_CACHE_DIR": str(tmp_path / "b")}
    running = subprocess.Popen([COMMAND, "judge", str(tmp_path / "pairs.jsonl"), str(tmp_path / "there.jsonl"), *how, "--ray", head, "--workers", "2"], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    stored, end = tmp_path / "b" / "store.sqlite", time.monotonic() + 180
    while running.poll() is None and time.monotonic() < end and not (stored.exists() and len(Store(stored)) > 500): time.sleep(0.05)
    assert running.poll() is None, running.stderr.read()[-2000:]
    found = workers()
    assert found, "no worker was seen"
    found[0].send_signal(signal.SIGKILL)
    out, err = running.communicate(timeout=300)
    assert running.returncode == 0, err[-3000:]
    assert (tmp_path / "here.jsonl").read_text() == (tmp_path / "there.jsonl").read_text()
