"""The store: single flight over threads and processes, nothing finished is repeated, the dead do not block."""
import json, os, signal, sqlite3, subprocess, sys, textwrap, threading, time
import pytest
from rubriclab.core.store import Store, key_of

ASK = textwrap.dedent("""
    import sys, time
    from rubriclab.core.store import Store, key_of
    path, log, n, wait = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
    def make(positions):
        for i in positions:
            time.sleep(wait)
            with open(log, "a") as f: f.write(f"{i}\\n")
            yield i, f'"{i}"', True
    keys = [key_of(str(i)) for i in range(n)]
    got = dict(Store(path).through(keys, keys, "e", make))
    assert got == {i: f'"{i}"' for i in range(n)}, got
""")


def ask(path, log, n, wait): return subprocess.Popen([sys.executable, "-c", ASK, str(path), str(log), str(n), str(wait)])
def lines(log): return [int(x) for x in log.read_text().split()] if log.exists() else []


def test_threads_share_one_flight(tmp_path):
    store, ran, lock = Store(tmp_path / "s.sqlite"), [], threading.Lock()
    def make(positions):
        for i in positions:
            time.sleep(0.002)
            with lock: ran.append(i)
            yield i, str(i), True
    keys = [key_of(str(i)) for i in range(60)]
    got = []
    threads = [threading.Thread(target=lambda: got.append(dict(store.through(keys, keys, "e", make)))) for _ in range(6)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert sorted(ran) == list(range(60)) and got == [{i: str(i) for i in range(60)}] * 6


def test_processes_share_one_flight(tmp_path):
    log = tmp_path / "log"
    running = [ask(tmp_path / "s.sqlite", log, 80, 0.005) for _ in range(3)]
    assert [p.wait(60) for p in running] == [0, 0, 0]
    assert sorted(lines(log)) == list(range(80))


def test_killed_processes_repeat_nothing_and_block_nobody(tmp_path):
    path, log = tmp_path / "s.sqlite", tmp_path / "log"
    Store(path)
    for wait in (0.4, 0.6, 0.5):
        p = ask(path, log, 200, 0.02)
        time.sleep(wait)
        p.send_signal(signal.SIGKILL); p.wait()
        done = len(Store(path))
        # at most one call was finished by the engine and not yet committed
        assert len(lines(log)) - done <= len(lines(log)) - len(set(lines(log))) + 1
    start = time.monotonic()
    assert ask(path, log, 200, 0.001).wait(60) == 0
    assert time.monotonic() - start < 20, "the claims of a dead process were waited for"
    ran = lines(log)
    assert set(ran) == set(range(200)) and len(ran) - 200 <= 3 # one unfinished call a kill


def test_an_error_gives_claims_back_and_keeps_what_was_done(tmp_path):
    store, keys = Store(tmp_path / "s.sqlite"), [key_of(str(i)) for i in range(4)]
    def breaks(positions):
        yield positions[0], '"done"', True
        raise ConnectionError("the server went away")
    with pytest.raises(ConnectionError): dict(store.through(keys, keys, "e", breaks))
    assert store.get(keys) == {keys[0]: '"done"'}
    assert store.claim(keys[1:], "host|1|x") == set(keys[1:])


def test_a_silent_owner_loses_its_lease(tmp_path):
    store, key = Store(tmp_path / "s.sqlite"), key_of("x")
    store.lease = 0.2
    assert store.claim([key], "elsewhere|1|x") == {key}
    assert store.claim([key], "elsewhere|2|y") == set()
    time.sleep(0.3)
    assert store.claim([key], "elsewhere|2|y") == {key}


def test_the_first_value_stays(tmp_path):
    store = Store(tmp_path / "s.sqlite")
    store.put([("k", "e", "r", '"one"')]); store.put([("k", "e", "r", '"two"')])
    assert store.get(["k"]) == {"k": '"one"'}


def test_other_files_are_refused(tmp_path):
    (tmp_path / "s.sqlite").write_text("a diary, not a database " * 100)
    with pytest.raises(ValueError, match="is not a store of rubriclab"): Store(tmp_path / "s.sqlite")
    with pytest.raises(FileNotFoundError): Store(tmp_path / "none.sqlite", read_only=True)


def test_values_are_json_and_the_file_is_wal(tmp_path):
    store = Store(tmp_path / "s.sqlite")
    dict(store.through([key_of("q")], ["q"], "e", lambda ps: ((p, json.dumps({"text": "é"}), True) for p in ps)))
    with sqlite3.connect(tmp_path / "s.sqlite") as db:
        assert db.execute("pragma journal_mode").fetchone() == ("wal",)
        assert [json.loads(v) for v, in db.execute("select value from calls")] == [{"text": "é"}]


def test_a_fork_opens_its_own_connection(tmp_path):
    store = Store(tmp_path / "s.sqlite")
    pid = os.fork()
    if pid == 0:
        store.put([("child", "e", "r", "1")])
        os._exit(0)
    os.waitpid(pid, 0)
    store.put([("parent", "e", "r", "2")])
    assert len(store) == 2


def test_answers_of_a_quick_engine_are_committed_together(tmp_path, monkeypatch):
    store, sizes, put = Store(tmp_path / "s.sqlite"), [], Store.put
    monkeypatch.setattr(Store, "put", lambda self, rows: (sizes.append(len(rows)), put(self, rows)))
    keys = [key_of(str(i)) for i in range(5000)]
    dict(store.through(keys, keys, "e", lambda ps: ((p, "1", True) for p in ps)))
    assert sum(sizes) == len(store) == 5000 and len(sizes) < 500


def test_an_answer_does_not_wait_for_the_next(tmp_path):
    store, keys = Store(tmp_path / "s.sqlite"), [key_of("a"), key_of("b")]
    def slow(positions):
        yield positions[0], '"first"', True
        end = time.monotonic() + 10
        while not store.get(keys[:1]) and time.monotonic() < end: time.sleep(0.01)
        yield positions[1], json.dumps(bool(store.get(keys[:1]))), True
    assert dict(store.through(keys, keys, "e", slow))[1] == "true"


def test_what_goes_wrong_while_writing_is_raised(tmp_path, monkeypatch):
    store, keys = Store(tmp_path / "s.sqlite"), [key_of("a")]
    def full(self, rows): raise sqlite3.OperationalError("database or disk is full")
    monkeypatch.setattr(Store, "put", full)
    answer = lambda ps: ((p, "1", True) for p in ps)
    with pytest.raises(sqlite3.OperationalError, match="disk is full"): dict(store.through(keys, keys, "e", answer))
    monkeypatch.undo()
    assert dict(store.through(keys, keys, "e", answer)) == {0: "1"} and len(store) == 1 # the claim was given back
