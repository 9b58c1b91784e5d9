"""The api engine against a server that fails in every way it can: each ends as a value with its reason, and the run goes on."""
import asyncio, json, math, re, shutil, ssl, subprocess, sys, threading, time
import pytest
web = pytest.importorskip("aiohttp.web", reason='the api engine needs pip install "rubriclab[api]"')
from rubriclab.core.store import Store
from rubriclab.core.types import Chat, Completion, Unusable
from rubriclab.engines import api, flow
from rubriclab.engines.api import open_backend
from rubriclab.engines.flow import Gate, as_they_come
from rubriclab.engines.engine import Engine, Request

SECRET = "sk-never-to-be-seen-4711"


def said(text="Titan.", finish="stop", prompt=5, **more):
    return web.json_response({"choices": [{"message": {"content": text}, "finish_reason": finish, **more}], "usage": {"prompt_tokens": prompt, "completion_tokens": 2}})


def error(status, message, **headers): return web.json_response({"error": {"message": message}}, status=status, headers=headers)


class Server:
    "Does what the user's message says; counts what it was asked and how much at once."
    def __init__(self): self.asked, self.bodies, self.now, self.most, self.cancelled = {}, [], 0, 0, 0

    async def answer(self, request):
        body = await request.json()
        what = body["messages"][0]["content"]
        self.bodies.append(body | {"key": request.headers.get("Authorization")})
        self.asked[what] = n = self.asked.get(what, 0) + 1
        self.now += 1
        self.most = max(self.most, self.now)
        try: return await self.act(what.partition(" #")[0], n, body, request)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally: self.now -= 1

    async def act(self, what, n, body, request):
        if self.locked: return error(401, "who are you?")
        if self.hosted and "logprobs" in body: return said(logprobs={"content": [{"top_logprobs": [{"token": t, "logprob": x} for t, x in self.hosted.items()]}]})
        if what == "Say yes." and self.tired: return error(429, "slow down")
        if what == "Say yes." and self.goes_on: return said(prompt=5 + (len(body["messages"]) > 1)) # a probe: what is begun for it is read
        if what == "old names": return error(400, "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.") if "max_tokens" in body else said("new")
        if what == "cold": return error(400, "Unsupported value: 'temperature' does not support 0.0 with this model. Only the default (1) value is supported.")
        if what == "busy": return error(429, "slow down")
        if what == "aborted": return said("Tit", "abort")
        if what == "deep": return web.Response(text='{"choices":' + "[" * 200_000)
        if what == "steep": return said(logprobs={"content": [{"top_logprobs": [{"token": " A", "logprob": 1e4}]}]})
        if what == "silent": return said()
        if what == "blind": return said('Well: {"label": "yes"}, I think') # leaves response_format out without a word
        if what == "nothing": return web.json_response({"choices": [{"message": {"content": None}, "finish_reason": "stop"}]})
        if what == "day off": return said() if n > 1 else error(429, "tomorrow", **{"Retry-After": "86400"})
        if what == "busy twice": return said() if n > 2 else error(429, "slow down", **{"Retry-After": "0.3"})
        if what == "broken once": return said() if n > 1 else error(500, "oops")
        if what == "broken": return error(503, "down for repair")
        if what == "hang": await asyncio.sleep(30)
        if what == "slow": await asyncio.sleep(0.4)
        if what == "drop": request.transport.close()
        if what == "cut": return await self.cut(request)
        if what in ("drip", "huge"): return await self.pour(request, *((b" ", 0.05) if what == "drip" else (b" " * 2**16, 0)))
        if what == "schema": return error(400, "response_format json_schema is not supported") if "response_format" in body else said('Here: {"label": "yes"} I think')
        if what == "spend": return said("ok")
        if what == "secretive": return web.json_response({"choices": [{"message": {"content": "ok"}}]})
        if what == "nap":
            if self.now > self.room: self.refused += 1; return error(429, "full")
            await asyncio.sleep(0.01)
        if what == "garbage": return web.Response(text="<html>It works!</html>")
        if what == "empty": return web.json_response({"choices": []})
        if what == "list": return web.json_response([1, 2])
        if what == "no message": return web.json_response({"choices": [{"finish_reason": "stop"}]})
        if what == "full": return error(400, "This model's maximum context length is 2048 tokens. However, your prompt contains 2310 input tokens.")
        if what == "wrong": return error(400, f"invalid value; your key is {SECRET}")
        if what == "filtered": return said("", "content_filter")
        if what == "moved": return web.Response(status=307, headers={"Location": "http://127.0.0.1:1/"})
        if what == "key": return error(401, f"bad key {SECRET}")
        if what == "model": return error(404, "no such model")
        if what == "forced": return error(400, "unknown field continue_final_message") if "continue_final_message" in body else said()
        if what == "letters": return said(logprobs={"content": [{"top_logprobs": [{"token": t, "logprob": x} for t, x in ((" A", -0.3), (" B", -1.5))]}]})
        if what == "nan": return web.Response(text=json.dumps({"choices": [{"logprobs": {"content": [{"top_logprobs": [{"token": t, "logprob": float("nan")} for t in (" A", " B")]}]}}]}))
        return said(body["messages"][-1]["content"][::-1])

    async def cut(self, request):
        r = web.StreamResponse(headers={"Content-Length": "1000"})
        await r.prepare(request)
        await r.write(b'{"choices": [')
        request.transport.close()
        return r

    async def pour(self, request, drop, wait):
        await (r := web.StreamResponse()).prepare(request)
        for _ in range(400):
            await r.write(drop)
            await asyncio.sleep(wait)
        return r

    models, room, refused, goes_on, listing, tired, locked, hosted = (), 1, 0, True, None, False, False, {} # the last: its likeliest tokens, where it shows some
    async def list(self, request):
        if self.listing is not None: return self.listing()
        return web.json_response({"data": [{"id": m, "owned_by": "vllm"} for m in self.models]}) if self.models else web.Response(status=404)

    known = {} # what it answers elsewhere, by path: a function of the body
    async def more(self, request):
        body = await request.json()
        self.asked[request.path] = self.asked.get(request.path, 0) + 1
        return self.known[request.path](body) if request.path in self.known else web.Response(status=404)

    async def serve(self, hand_out, context=None):
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self.answer)
        app.router.add_get("/v1/models", self.list)
        for path in ("/v1/completions", "/tokenize", "/detokenize"): app.router.add_post(path, self.more)
        await (runner := web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)).setup()
        await (site := web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)).start()
        hand_out(site._server.sockets[0].getsockname()[1])
        try: await asyncio.Event().wait()
        finally: await runner.cleanup()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    monkeypatch.setattr("rubriclab.engines.api.pause", lambda tried, asked=None: float(asked or 0.01))
    monkeypatch.setattr(api, "MOST_BYTES", 2**20)
    s = Server()
    running = as_they_come(s.serve)
    s.url = f"toy@http://127.0.0.1:{next(running)}"
    yield s
    running.close()


def ask(server, *texts, store=None, **options):
    e = Engine(open_backend(server.url, **{"timeout": "2", "tries": "3", **options}), store)
    return [r for r, in e.generate([Chat.user(t) for t in texts])]


@pytest.mark.parametrize("what, reason, tries", [
    ("broken", "server_error", 3), ("drop", "server_error", 3), ("cut", "server_error", 3), ("garbage", "server_error", 3), ("empty", "server_error", 3),
    ("list", "server_error", 3), ("no message", "server_error", 3), ("huge", "server_error", 3), ("full", "too_long", 1), ("wrong", "bad_request", 1), ("filtered", "refusal", 1),
    ("busy twice", None, 3), ("broken once", None, 2), ("aborted", "server_error", 1), ("deep", "server_error", 3), ("nothing", None, 1), ("old names", None, 2)])
def test_every_fault_is_a_value(server, what, reason, tries):
    before, r, after = ask(server, "one", what, "two")
    assert (before.text, after.text) == ("eno", "owt")
    assert server.asked[what] == tries
    assert isinstance(r, Completion) if reason is None else (r.reason == reason and SECRET not in r.detail and SECRET not in repr(r)), r


@pytest.mark.parametrize("what", ["hang", "drip"])
def test_a_server_that_does_not_end_is_a_timeout(server, what):
    start = time.time()
    slow, fast = ask(server, what, "one", timeout="0.3", tries="2")
    assert slow.reason == "timeout" and "(2 tries)" in slow.detail and fast.text == "eno" and time.time() - start < 5


def test_retry_after_is_honored(server):
    start = time.time()
    assert ask(server, "busy twice")[0].text == "Titan." and time.time() - start >= 0.6


@pytest.mark.parametrize("what, said", [("key", "key_env"), ("model", "no such model"), ("moved", "sends requests elsewhere")])
def test_what_would_spoil_every_request_stops_the_run(server, what, said):
    with pytest.raises(RuntimeError, match=said) as e: ask(server, what, *(f"hang #{i}" for i in range(5)))
    assert SECRET not in str(e.value)


def test_nobody_there():
    e = Engine(open_backend("toy@http://127.0.0.1:1", tries="1"))
    assert [r.reason for r, in e.generate([Chat.user("one"), Chat.user("two")])] == ["server_error"] * 2
    assert [s.reason for s in e.score([Chat.user("one")], ["A", "B"])] == ["server_error"]


def test_bounded_and_as_they_finish(server):
    e = open_backend(server.url, concurrency="4")
    requests = [Request(chat=Chat.user(t)) for t in ["slow", *(f"then {i}" for i in range(40))]] # in the order in which they go out
    order = [i for i, _ in e.complete(requests)]
    assert sorted(order) == list(range(41)) and order.index(0) > 20 and 2 <= server.most <= 4
    server.most = 0
    ask(server, *(f"slow #{i}" for i in range(8)), concurrency="8")
    assert server.most == 8


def test_neighbors_go_out_together_and_the_work_is_added_up(server):
    e = Engine(open_backend(server.url, concurrency="1"))
    texts = ["a moon of Saturn", "the tide", "a moon", "busy twice", "the tide"]
    answers = [r.text for r, in e.generate([Chat.user(t) for t in texts])]
    went = [b["messages"][0]["content"] for b in server.bodies if "messages" in b]
    assert list(dict.fromkeys(went)) == sorted(set(texts)) and answers[0] == texts[0][::-1] and answers[1] == answers[4]
    assert (e.work.computed_tokens, e.work.generated_tokens, e.work.unique_tokens) == (5 * len(texts), 2 * len(texts), 0) # tries that failed cost nothing
    assert e.tally.work == e.work


def test_leaving_cancels_what_is_under_way(server):
    running = open_backend(server.url).complete([Request(chat=Chat.user(t)) for t in ("one", "hang", "hang #2")])
    assert next(running)[0] == 0
    start = time.time()
    running.close()
    assert time.time() - start < 2 and not [t for t in threading.enumerate() if t.name == "rubriclab-api" and t.is_alive()][1:]
    time.sleep(0.2)
    assert server.cancelled == 2


def test_inside_a_running_loop(server):
    async def cell(): return ask(server, "one")[0].text
    assert asyncio.run(cell()) == "eno"


def test_threads_share_a_backend(server):
    e, out = Engine(open_backend(server.url)), {}
    work = lambda k: out.update({k: [r.text for r, in e.generate([Chat.user(f"{k}{i}") for i in range(10)])]})
    threads = [threading.Thread(target=work, args=(k,)) for k in "abc"]
    for t in threads: t.start()
    for t in threads: t.join()
    assert out == {k: [f"{i}{k}" for i in range(10)] for k in "abc"}


FIRST = """
import sys, threading
sys.setswitchinterval(1e-6)
from rubriclab.engines import flow
from rubriclab.engines.engine import _backend
all_at_once, loops, backends = threading.Barrier(8), [], []
def first():
    all_at_once.wait()
    loops.append(flow.background()); backends.append(_backend("fake:world"))
threads = [threading.Thread(target=first) for _ in range(8)]
for t in threads: t.start()
for t in threads: t.join()
print(len({*map(id, loops)}), len({*map(id, backends)}))
"""


def test_the_first_threads_share_a_loop_and_a_backend():
    for _ in range(3): assert subprocess.run([sys.executable, "-c", FIRST], capture_output=True, text=True, timeout=120).stdout.split() == ["1", "1"]


def test_a_model_that_left_the_server_stops_the_run_and_is_not_kept(server, tmp_path, monkeypatch):
    monkeypatch.setenv("RUBRICLAB_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(api, "_tokenizer", lambda name: Marking())
    server.known = {"/v1/completions": echo}
    e = Engine(open_backend(server.url, tokenizer="marking"), store := Store(tmp_path / "s.sqlite"))
    assert e.score([Chat.user("letters", prefill=" Winner:")], [" A", " B"])[0].exact
    kept = len(store)
    server.known = {"/v1/completions": lambda body: error(404, "The model toy does not exist.")}
    with pytest.raises(Unusable, match="doctor --engine"): e.score([Chat.user("other letters", prefill=" Winner:")], [" A", " B"])
    assert len(store) == kept


def test_a_forced_beginning_is_not_dropped(server):
    e = Engine(open_backend(server.url))
    assert e.generate([Chat.user("forced")])[0][0].text == "Titan."
    assert e.generate([Chat.user("forced", prefill="The moon is")])[0][0].reason == "unsupported"


def test_letters_that_are_not_shown_have_a_bound(server):
    e = Engine(open_backend(server.url))
    both, one, none, number = e.score([Chat.user("letters"), Chat.user("letters"), Chat.user("letters"), Chat.user("nan")], [[" A", " B"], [" A", " C"], [" C", " D"], [" A", " B"]])
    assert both.logprobs == (-0.3, -1.5) and both.exact
    assert one.logprobs[0] == -0.3 and not one.exact and one.logprobs[1] == pytest.approx(math.log(1 - math.exp(-0.3) - math.exp(-1.5)))
    assert (none.reason, number.reason) == ("unsupported", "server_error")
    for choices in (("A", "A"), ("", "A")):
        with pytest.raises(ValueError): e.score([Chat.user("letters")], choices)


def test_a_schema_that_the_server_does_not_know_is_looked_for_in_the_text(server):
    e = Engine(open_backend(server.url))
    found = e.generate([Chat.user("schema"), Chat.user("schema #2")], schema={"type": "object", "required": ["label"]})
    assert [r.text for r, in found] == ['{"label": "yes"}'] * 2 and sum("response_format" in b for b in server.bodies) <= 2
    e.generate([Chat.user("schema #3")], schema={"type": "object", "required": ["label"]})
    assert "response_format" not in server.bodies[-1] # it is not asked again


def test_a_wrong_model_is_said_at_once(server):
    server.models = ("other", "third")
    with pytest.raises(RuntimeError, match="serves other, third, not 'toy'; write api:other@"): ask(server, *(f"one #{n}" for n in range(50)))
    assert not server.bodies


def test_tls_that_fails_is_said_at_once(server, tmp_path):
    with pytest.raises(RuntimeError, match="cannot be trusted.*SSL_CERT_FILE"): ask_at(server.url.replace("http:", "https:"))
    if shutil.which("openssl") is None: pytest.skip("no openssl to make a certificate of one's own")
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", tmp_path / "key", "-out", tmp_path / "cert", "-days", "1", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    running = as_they_come(lambda hand_out: server.serve(hand_out, context))
    try:
        with pytest.raises(RuntimeError, match="cannot be trusted.*self-signed"): ask_at(f"toy@https://127.0.0.1:{next(running)}")
    finally: running.close()


def ask_at(url): return Engine(open_backend(url, tries="1")).generate([Chat.user("one")])


def test_a_budget_is_kept(server, tmp_path):
    (tmp_path / "prices.yaml").write_text("toy: {input: 1000.0, output: 1000.0}\n") # 7 tokens a reply, so $0.007
    texts = [f"spend #{n}" for n in range(400)]
    for given, most in ((dict(tokens="600"), 600), (dict(dollars="0.6", prices=str(tmp_path / "prices.yaml")), 600)):
        e = Engine(open_backend(server.url, **given))
        found = [r for r, in e.generate([Chat.user(t) for t in texts], max_tokens=8)]
        paid = [r for r in found if isinstance(r, Completion)]
        assert most - 40 <= 7 * len(paid) == e.backend.spent()["tokens"] <= most and {r.reason for r in found if r not in paid} == {"budget"}
    assert e.backend.spent()["dollars"] == pytest.approx(0.007 * len(paid))
    assert e.tally.work.dollars == pytest.approx(0.007 * len(paid))
    assert next(r for r in found if r not in paid).transient # never stored: a later run goes on
    for bad, why in ((dict(dollars="1"), "needs prices"), (dict(prices=str(tmp_path / "prices.yaml"), tokens="0"), "tokens"), (dict(prices=str(tmp_path / "none.yaml")), "name a YAML file")):
        with pytest.raises(ValueError, match=why): open_backend(server.url, **bad)
    with pytest.raises(ValueError, match="has no 'boy'; it has toy"): open_backend(server.url.replace("toy@", "boy@"), prices=str(tmp_path / "prices.yaml"))


def test_a_reply_that_does_not_say_what_it_took_takes_what_was_held_back(server):
    e = Engine(open_backend(server.url, tokens="600"))
    found = [r for r, in e.generate([Chat.user(f"secretive #{n}") for n in range(100)], max_tokens=8)]
    assert 5 < sum(isinstance(r, Completion) for r in found) < 40 and {r.reason for r in found if not isinstance(r, Completion)} == {"budget"} and 500 < e.backend.spent()["tokens"] <= 600


def test_what_was_not_sent_costs_nothing(server):
    import aiohttp
    backend = open_backend(server.url, tokens="600", tries="2")
    assert next(backend.complete([Request(chat=Chat.user("one"))]))[1].text == "eno"
    spent, backend.base = backend.spent()["tokens"], "http://127.0.0.1:1/v1" # it goes away
    assert {r.reason for _, r in backend.complete([Request(chat=Chat.user(f"one #{n}")) for n in range(20)])} == {"server_error"} and backend.spent()["tokens"] == spent
    backend.live().http.request = lambda *args, **how: (_ for _ in ()).throw(aiohttp.ConnectionTimeoutError("no way"))
    assert next(backend.complete([Request(chat=Chat.user("one"))]))[1].reason == "timeout" and backend.spent()["tokens"] == spent


def test_a_deadline_is_kept(server):
    start = time.time()
    found = ask(server, *(f"slow #{n}" for n in range(40)), concurrency="4", deadline="1.0")
    assert time.time() - start < 2.5 and 8 <= sum(isinstance(r, Completion) for r in found) < 20 and {r.reason for r in found if not isinstance(r, Completion)} == {"budget"}


def test_nothing_is_sent_after_the_deadline(server):
    backend = open_backend(server.url, deadline="0.05")
    async def late():
        live = backend.live()
        await live.purse.take(object(), 1, 1)
        await asyncio.sleep(0.1)
        assert backend.patience("POST").total > 0 # 0 would be no bound at all
        found = await backend.ask(api.Call(), "POST", f"{server.url}/v1/tokenize", {"prompt": "x"}, lambda reply: reply)
        await live.http.close()
        return found
    found = asyncio.run(late())
    assert found.reason == "budget" and "deadline" in found.detail and not sum(server.asked.values())


def test_versions_behind_one_name_are_kept_apart(server):
    plain, one, other = (open_backend(server.url, **v).identity for v in ({}, {"version": "step-100"}, {"version": "step-200"}))
    assert "version" not in plain and one != other and one | {"version": "step-200"} == other


def test_how_many_at_once_is_found(server):
    server.room = 12 # one more is refused
    e = Engine(open_backend(server.url, concurrency="64", tries="2"))
    found = [r for r, in e.generate([Chat.user(f"nap #{n}") for n in range(600)])]
    assert all(isinstance(r, Completion) for r in found) and 6 <= e.backend.running.gate.limit <= 14, e.backend.running.gate
    late = server.refused
    e.generate([Chat.user(f"nap #{n}") for n in range(600, 900)])
    assert server.refused - late < 40 # what was learned stays


class Instant(asyncio.SelectorEventLoop):
    "An event loop on which waiting takes no time: its clock jumps to the next timer."
    def __init__(self):
        super().__init__()
        self.clock, select = 0.0, self._selector.select
        def jump(timeout=None):
            self.clock += timeout or 0.0
            return select(0)
        self._selector.select = jump
    def time(self): return self.clock


def at_once(work):
    "The result of a coroutine, and the seconds that it would have taken."
    loop = Instant()
    try: return loop.run_until_complete(work), loop.time()
    finally: loop.close()


async def visit(gate, fate=lambda gate: None, tries=100):
    "A request of one second; `fate` says how it fails, if it does: crowded or not."
    for n in range(1, tries + 1):
        ticket = await gate.enter()
        crowded = fate(gate)
        if crowded is None: await asyncio.sleep(1.0)
        gate.leave(ticket, crowded is None, crowded=bool(crowded))
        if crowded is None: return n
        await asyncio.sleep(flow.pause(n))


def test_errors_while_few_are_under_way_leave_the_limit_nearly_as_it_was():
    async def tail():
        gate, fails = Gate(256), iter([False, False, False, True, None])
        await asyncio.gather(*(visit(gate) for _ in range(2000)))
        assert gate.limit == 256
        await visit(gate, lambda gate: next(fails)) # four times one after the other, with nobody beside it
        assert gate.now == 0 and 100 < gate.limit < 256 and gate.worked == 0.85 * 256, gate
        await asyncio.gather(*(visit(gate) for _ in range(2000)))
        return gate
    gate, seconds = at_once(tail())
    assert gate.limit > 0.85 * 256 and seconds < 45


def test_a_server_that_was_down_soon_gets_as_many_as_before():
    async def outage():
        gate, loop = Gate(256), asyncio.get_running_loop()
        await asyncio.gather(*(visit(gate) for _ in range(2000)))
        end = loop.time() + 120
        await asyncio.gather(*(visit(gate, lambda gate: False if loop.time() < end else None) for _ in range(4000)))
        return gate, loop.time() - end
    (gate, seconds), _ = at_once(outage())
    assert 200 < gate.limit <= 256 and seconds < 60, (gate, seconds) # 16 at 256 at once


def test_a_bound_that_the_server_does_not_say_is_found_in_time():
    async def crowd():
        gate, room = Gate(2048), [0]
        async def one(n):
            tried = 0
            while True:
                ticket, tried = await gate.enter(), tried + 1
                full = room[0] >= 256
                if not full: room[0] += 1; await asyncio.sleep(1.0); room[0] -= 1
                gate.leave(ticket, not full, crowded=full)
                if not full: return
                await asyncio.sleep(flow.pause(tried))
        todo = iter(range(10_000))
        async def worker():
            for n in todo: await one(n)
        await asyncio.gather(*(worker() for _ in range(2048)))
        return gate
    gate, seconds = at_once(crowd())
    assert seconds < 1.5 * 10_000 / 256 and gate.now == 0 and gate.limit < 300, (gate, seconds)


def test_the_store_keeps_what_will_not_change(server, tmp_path):
    store = Store(tmp_path / "s.sqlite")
    for _ in range(2): ask(server, "one", "broken", "wrong", store=store)
    assert (server.asked["one"], server.asked["wrong"], server.asked["broken"]) == (1, 1, 6)
    assert SECRET.encode() not in b"".join(p.read_bytes() for p in tmp_path.iterdir())


def test_the_key_travels_in_the_header_alone(server):
    backend = open_backend(server.url)
    list(backend.complete([Request(chat=Chat.user("one"))]))
    assert server.bodies[0]["key"] == f"Bearer {SECRET}" and SECRET not in json.dumps({k: v for k, v in server.bodies[0].items() if k != "key"})
    assert SECRET not in repr(backend) + json.dumps(backend.identity) + json.dumps({k: str(v) for k, v in vars(backend).items()})


def test_samples_have_streams_of_their_own(server):
    e = Engine(open_backend(server.url))
    e.generate([Chat.user("one")], n=3, temperature=1.0)
    e.generate([Chat.user("one")], n=1, first=2, temperature=1.0)
    e.generate([Chat.user("one")], n=3)
    seeds = [b.get("seed") for b in server.bodies]
    assert len(set(seeds[:3])) == 3 and seeds[3] in seeds[:3] and seeds[4:] == [None] * len(seeds[4:]) and all(0 <= s < 2**31 for s in seeds[:4])


def test_options():
    for bad, why in ((dict(concurrency="0"), "concurrency"), (dict(timeout="soon"), "timeout"), (dict(tries="-1"), "tries"), (dict(key_env=SECRET), "environment")):
        with pytest.raises(ValueError, match=why) as e: open_backend("toy@http://127.0.0.1", **bad)
        assert SECRET not in str(e.value)


def test_the_doctor_says_what_a_server_can_do(server, tmp_path):
    from conftest import command
    done = command("doctor", "--engine", f"api:{server.url}", RUBRICLAB_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0 and "engine api:toy" in done.stdout and "not known: replies are searched for JSON" in done.stdout and "writes" in done.stdout and SECRET not in done.stdout + done.stderr, done.stderr
    assert len(list((tmp_path / "servers").iterdir())) == 1
    gone = command("doctor", "--engine", "api:toy@http://127.0.0.1:1?tries=1", RUBRICLAB_CACHE_DIR=str(tmp_path))
    assert gone.returncode == 2 and "does not answer" in gone.stderr


def test_a_server_that_is_always_busy_ends_as_a_value(server):
    before, r, after = ask(server, "one", "busy", "two")
    assert (before.text, after.text, r.reason) == ("eno", "owt", "server_error") and r.detail.startswith("429: slow down") and server.asked["busy"] >= 3


def test_a_day_of_waiting_is_not_waited_for(server):
    start = time.time()
    found = ask(server, "day off", *(f"slow #{n}" for n in range(3)), deadline="1.0")
    assert found[0].reason == "budget" and "deadline" in found[0].detail and time.time() - start < 3


def test_log_probabilities_that_are_missing_or_none_are_values(server):
    e = Engine(open_backend(server.url, tries="1"))
    silent, steep, fine = e.score([Chat.user(t) for t in ("silent", "steep", "letters")], [" A", " B"])
    assert silent.reason == "unsupported" and "no log-probabilities" in silent.detail and steep.reason == "server_error" and fine.exact


def test_a_beginning_that_the_server_drops_without_a_word_is_a_failure(server):
    server.goes_on = False
    e = Engine(open_backend(server.url))
    (plain,), (begun,) = e.generate([Chat.user("one"), Chat.user("one", prefill="The moon is")])
    assert plain.text == "eno" and begun.reason == "unsupported" and "forced beginning" in begun.detail
    assert e.score([Chat.user("letters", prefill="Winner:")], [" A", " B"])[0].reason == "unsupported" and e.score([Chat.user("letters")], [" A", " B"])[0].exact


@pytest.mark.parametrize("text", ['{"label": ' * 5000, "[" * 5000 + '{"a": ' * 5000, "{" * 200])
def test_text_nested_without_end_holds_no_json(text): assert api.recovered(text, {"required": ["label"]}) == text


def test_a_schema_that_is_left_out_without_a_word_is_looked_for_too(server):
    (r,), = Engine(open_backend(server.url)).generate([Chat.user("blind")], schema={"type": "object", "required": ["label"]})
    assert r.text == '{"label": "yes"}'
    e = Engine(open_backend(server.url))
    assert e.generate([Chat.user("blind")], choices=["yes", "no"])[0][0].text == "yes" and server.bodies[-1]["response_format"]["json_schema"]["schema"]["properties"]["choice"]["enum"] == ["yes", "no"]
    with pytest.raises(ValueError, match="not both"): e.generate([Chat.user("blind")], schema={}, choices=["yes"])


def test_models_that_want_other_words(server):
    assert [r.text for r in ask(server, "old names", "old names #2", "one")] == ["new", "new", "eno"] and "max_tokens" not in server.bodies[-1]
    with pytest.raises(Unusable, match="ask with temperature=1"): ask(server, "cold")


def test_what_was_held_back_is_given_back_when_one_leaves(server):
    backend = open_backend(server.url, tokens="1000000")
    running = backend.complete([Request(chat=Chat.user(t)) for t in ("go", *(f"hang #{n}" for n in range(150)))]) # more than are let through
    assert next(running)[0] == 0
    running.close()
    assert backend.running.purse.held == {} and backend.running.gate.now == 0
    assert next(backend.complete([Request(chat=Chat.user("two"))]))[1].text == "owt"


def test_a_handshake_that_breaks_later_does_not_stop_the_run(server):
    import aiohttp
    from types import SimpleNamespace
    backend = open_backend(server.url)
    e = aiohttp.ClientConnectorSSLError(SimpleNamespace(host="toy", port=1, ssl=True), OSError(1, "EOF"))
    with pytest.raises(Unusable, match="cannot be trusted"): backend.broken(e)
    list(backend.complete([Request(chat=Chat.user("one"))]))
    assert backend.broken(e).reason == "server_error"


@pytest.mark.parametrize("listing, text", [(lambda: error(403, "not for you"), "eno"), (lambda: web.Response(text="<html>hello</html>"), "eno"), (lambda: error(503, "loading"), None)])
def test_a_list_of_models_need_not_be_shown(server, listing, text):
    server.listing = listing
    r, = ask(server, "one", tries="1")
    assert r.text == text if text else (r.reason == "server_error" and not server.bodies)


def test_what_a_busy_server_did_not_show_is_tried_again(server, tmp_path, monkeypatch):
    monkeypatch.setenv("RUBRICLAB_CACHE_DIR", str(tmp_path))
    e = Engine(open_backend(server.url, tries="1"), store=None)
    server.tired = True
    assert e.score([Chat.user("letters", prefill="Winner:")], [" A", " B"])[0].reason == "server_error" and not (tmp_path / "servers").exists()
    server.tired = False
    assert e.score([Chat.user("letters", prefill="Winner:")], [" A", " B"])[0].exact and len(list((tmp_path / "servers").iterdir())) == 1


def test_what_a_busy_server_did_not_show_is_not_kept_as_unsupported(server, tmp_path, monkeypatch):
    monkeypatch.setenv("RUBRICLAB_CACHE_DIR", str(tmp_path))
    e = Engine(open_backend(server.url, tries="1"), Store(tmp_path / "s.sqlite"))
    begun, plain = Chat.user("letters", prefill="Winner:"), Chat.user("letters")
    server.tired = True
    assert {r.reason for r in (*e.score([begun, plain], [" A", " B"]), *e.generate([begun])[0])} == {"server_error"} and "busy" in e.score([plain], [" A", " B"])[0].detail
    server.tired = False
    assert all(s.exact for s in e.score([begun, plain], [" A", " B"])) and isinstance(e.generate([begun])[0][0], Completion)


@pytest.mark.parametrize("answer", [lambda body: error(500, "no echo here"), lambda body: error(401, "not for you"), lambda body: web.Response(text="<html>hello</html>")])
def test_an_ability_that_ends_in_an_error_is_one_that_the_server_has_not(server, tmp_path, monkeypatch, answer):
    monkeypatch.setenv("RUBRICLAB_CACHE_DIR", str(tmp_path))
    server.known = {"/v1/completions": answer}
    e = Engine(open_backend(server.url))
    assert all(s.exact for _ in range(2) for s in e.score([Chat.user("letters")], [" A", " B"]))
    assert server.asked["/v1/completions"] == 2 and e.backend.running.gate.refused == 0 and e.backend.running.gate.limit == 64 and not e.backend.unsure
    assert Engine(open_backend(server.url)).score([Chat.user("letters")], [" A", " B"])[0].exact and server.asked["/v1/completions"] == 2 # and it is remembered


def test_a_wrong_key_is_not_kept_as_what_a_server_cannot_do(server, tmp_path, monkeypatch):
    monkeypatch.setenv("RUBRICLAB_CACHE_DIR", str(tmp_path))
    server.locked = True
    with pytest.raises(Unusable, match="key_env"): Engine(open_backend(server.url)).score([Chat.user("letters")], [" A", " B"])
    assert not (tmp_path / "servers").exists()


def by_id(body): return web.json_response({"choices": [{"logprobs": {"top_logprobs": [{f"token_id:{t}": -1.0 for t in body.get("logprob_token_ids", ())}]}}]})


@pytest.mark.parametrize("known", [
    {"/tokenize": lambda body: web.json_response({"tokens": [4, 5], "max_model_len": 100}), "/v1/completions": lambda body: web.json_response({"choices": [{"logprobs": {"top_logprobs": [{" moon": -1.0}]}}]})}, # an old one
    {"/v1/completions": by_id}]) # a gateway that shows no more than /v1
def test_a_vllm_that_knows_less_is_read_from_the_likeliest_tokens(server, tmp_path, monkeypatch, known):
    monkeypatch.setenv("RUBRICLAB_CACHE_DIR", str(tmp_path))
    server.models, server.known = ("toy",), known
    plain, begun = Engine(open_backend(server.url)).score([Chat.user("letters"), Chat.user("letters", prefill="Winner:")], [" A", " B"])
    assert plain.exact and plain.logprobs == begun.logprobs == (-0.3, -1.5)


class Marking:
    "A tokenizer that puts a mark before every text, as its chat template does, too."
    bos_token, bos_token_id, all_special_tokens, added_tokens_decoder = "<s>", 1, ["<s>"], {}
    def __call__(self, text): return type("Read", (), {"input_ids": [self.bos_token_id]})
    def apply_chat_template(self, messages, **options): return f"<s>[U]{messages[0]['content']}[/U]"


def echo(body, mark="<s>", told=True, counted=True):
    "Gives back a text with its mark; what follows a second mark is known badly."
    tokens = [mark, *re.findall(r"\s*\S+", body["prompt"]), " so"]
    at = [sum(len(t) for t in tokens[0 if counted else 1:i]) for i in range(len(tokens))]
    known = -9.0 if body["prompt"].startswith("<s>") else -0.5
    return web.json_response({"choices": [{"logprobs": {"tokens": tokens, "text_offset": at if told else [-1] * len(at), "token_logprobs": [None, *(known + (t == " B") * -1.0 for t in tokens[1:])]}}], "usage": {"prompt_tokens": len(tokens) - 1, "completion_tokens": 1}})


@pytest.mark.parametrize("counted", [True, False])
def test_a_text_that_is_given_back_begins_with_one_mark(server, monkeypatch, tmp_path, counted):
    monkeypatch.setenv("RUBRICLAB_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(api, "_tokenizer", lambda name: Marking())
    server.known = {"/v1/completions": lambda body: echo(body, counted=counted)}
    s, = Engine(open_backend(server.url, tokenizer="marking")).score([Chat.user("letters", prefill=" Winner:")], [" A", " B"])
    assert s.exact and s.logprobs == (-0.5, -1.5)


def test_places_that_are_none_are_not_read(server, monkeypatch, tmp_path):
    monkeypatch.setenv("RUBRICLAB_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(api, "_tokenizer", lambda name: Marking())
    server.known = {"/v1/completions": lambda body: echo(body, told=False)} # as SGLang does
    backend = open_backend(server.url, tokenizer="marking")
    assert not (found := backend.abilities()).echo
    for known in (found, found.replace(echo=True)): # as an earlier version kept it
        backend.served = known
        s, = Engine(backend).score([Chat.user("letters", prefill=" Winner:")], [" A", " B"])
        assert s.logprobs == (-0.3, -1.5)


def test_abilities_are_tried_at_the_same_time():
    from rubriclab.engines.server import look
    async def one(method, path, body):
        asked.append(path)
        running.append(path)
        if "logprob_token_ids" in body: assert running == ["/completions"] # vLLM 0.32 shows what is computed beside it fewer of the likeliest tokens
        await asyncio.sleep(1.0)
        running.remove(path)
        return {"tokens": [1, 2], "version": "1"}
    asked, running = [], []
    found, seconds = at_once(look(one, "toy", {}))
    assert found.tokenize and found.version == "1" and len(asked) == 9 and seconds < 3.5 # tokens, then those by token, then all others


def test_letters_of_a_server_that_drops_beginnings_are_a_whole_reply(server, tmp_path, monkeypatch):
    monkeypatch.setenv("RUBRICLAB_CACHE_DIR", str(tmp_path))
    from rubriclab.core.types import PreferencePair
    from rubriclab.judges.pairwise import judge
    server.goes_on, server.hosted = False, {"A": -0.5, " A": -2.0, "B": -1.6, "**": -4.0, "Winner": -9999.0}
    e = Engine(open_backend(server.url))
    verdicts = judge([PreferencePair(id="p", prompt="Which moon is the largest?", chosen="Ganymede.", rejected="Io.")], e, method="direct")[0].verdicts
    assert [round(v.margin, 6) for v in verdicts] == [x := round(math.log(math.exp(-0.5) + math.exp(-2.0)) + 1.6, 6), -x]
    last = server.bodies[-1]["messages"][-1]
    assert last["role"] == "user" and last["content"].endswith("`Winner: Response B`.\n\nYour whole reply must be one of these, and nothing else: A, B.") and "continue_final_message" not in server.bodies[-1]
    begun, beyond = e.score([Chat.user("Which?", prefill="Both are moons.\nWinner:"), Chat.user("Which?", prefill="Winner:")], [[" A", " B"], [" A", " C"]])
    assert not begun.exact and not beyond.exact and beyond.logprobs[1] == pytest.approx(-9999.0)
    assert [(m["role"], m["content"][-20:]) for b in server.bodies if "Both are moons." in str(b) for m in b["messages"]] == [("user", "Which?"), ("assistant", "Both are moons."), ("user", " nothing else: A, B.")]
    assert "never exact" in e.backend.abilities().beginnings


def test_without_log_probabilities_the_way_out_is_said(server, tmp_path, monkeypatch):
    monkeypatch.setenv("RUBRICLAB_CACHE_DIR", str(tmp_path))
    server.goes_on = False
    e = Engine(open_backend(server.url))
    s, = e.score([Chat.user("one", prefill="Winner:")], [" A", " B"])
    assert s.reason == "unsupported" and "--readout generate" in s.detail and "--readout generate" in e.backend.abilities().beginnings
    assert "--readout generate" in e.score([Chat.user("silent")], [" A", " B"])[0].detail


def test_a_choice_of_several_tokens_is_read_where_it_parts_from_the_others(server):
    server.hosted = {" not": -0.1, " met": -2.5, " no": -5.0}
    e = Engine(open_backend(server.url))
    two, three = e.score([Chat.user("met?")] * 2, [[" met", " not met"], [" met", " not met", " not said"]])
    assert (two.logprobs, two.exact) == ((-2.5, -0.1), False)
    assert (three.logprobs, three.exact) == ((-2.5, -0.1, -0.1), False) # no more than the token that both begin with


def test_a_tokenizer_that_is_added_later_asks_again(server, monkeypatch):
    monkeypatch.setattr(api, "_tokenizer", lambda name: object())
    before, after = Engine(open_backend(server.url)), Engine(open_backend(server.url, tokenizer="moon"))
    assert before.id != after.id and "tokenizer" not in before.identity and json.loads(after.identity)["tokenizer"] == "moon"


def test_errors_at_the_start_are_one_line_of_the_command_too(server, tmp_path):
    from conftest import command
    from rubriclab.data.records import write_rows
    from rubriclab.engines.fake import World
    write_rows(tmp_path / "pairs.jsonl", World(seed=4).pairs(3, per_prompt=1))
    server.listing = lambda: web.json_response({"data": [{"id": "other", "owned_by": "vllm"}]})
    done = command("judge", tmp_path / "pairs.jsonl", tmp_path / "out.jsonl", "-e", f"api:{server.url}", RUBRICLAB_CACHE_DIR=str(tmp_path))
    assert done.returncode == 2 and done.stderr.startswith("rubriclab: ") and "serves other, not 'toy'" in done.stderr and "Traceback" not in done.stderr
    server.listing = lambda: web.json_response({"data": [{"id": "toy", "owned_by": "me"}, {"id": "moon"}]})
    done = command("doctor", "--engine", f"api:{server.url}", RUBRICLAB_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0 and "toy, moon" in done.stdout and "gone on from" in done.stdout, done.stderr
