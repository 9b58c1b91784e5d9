"""One contract, every engine: fake, replay, the bundled model, vLLM in a process of its own, and a vLLM server on loopback."""
import json, subprocess, sys
from pathlib import Path
import pytest
from rubriclab.core.store import Store
from rubriclab.core.types import Chat
from rubriclab.engines.engine import Engine, engine
from rubriclab.engines.fake import FakeBackend, Skills, World
from engines_contract import CHECKS, SCORED, Case, language_model, reference
from vllm_env import end_group, serving, vllm_python

BFLOAT16 = 0.5 # nats; the largest difference seen is 0.21 for one token


@pytest.fixture(scope="session")
def bundled():
    pytest.importorskip("transformers", reason='the bundled model needs pip install "rubriclab[hf]"')
    from rubriclab.engines.bundled import fetch
    return fetch()


@pytest.fixture(scope="session")
def truth(bundled): return reference(bundled)


@pytest.fixture(scope="session")
def python():
    if (found := vllm_python()) is None: pytest.skip("no environment with vLLM; make it with: python tests/vllm_env.py")
    return found


@pytest.fixture(scope="session")
def fake():
    world = World(seed=3)
    pairs = world.pairs(4)
    write = [Chat.user(f"{p.prompt}\nWrite criteria, each ending in [Hard Rule] or [Principle].") for p in pairs[::2]]
    judged = [Chat.user(f"{p.prompt}\nA: {p.chosen}\nB: {p.rejected}\nWinner: Response A or B?") for p in pairs]
    return Case(Engine(FakeBackend(world, Skills())), write, [(c, ("A", "B")) for c in judged], text=False)


def small(bundled): return language_model(engine("smollm2", store=False), nats=2e-3, features=True)


@pytest.fixture(scope="module") # an idle vLLM keeps a core busy
def server(python, bundled):
    with serving(python, bundled, "--max-model-len", 2048, "--gpu-memory-utilization", 0.2) as url: yield f"api:smollm2@{url}/v1"


@pytest.mark.parametrize("check", CHECKS)
def test_fake(check, fake): CHECKS[check](fake, [()] * 9)


@pytest.mark.parametrize("check", CHECKS)
def test_smollm2(check, bundled, truth): CHECKS[check](small(bundled), truth)


@pytest.mark.parametrize("check", [c for c in CHECKS if c not in ("store", "features", "identity")])
def test_replay(check, fake, tmp_path):
    "What a check asked a recorded engine, it can ask the recording; wrong questions stay wrong."
    recorded = Engine(fake.engine.backend, Store(tmp_path / "run.sqlite"))
    CHECKS[check](Case(recorded, fake.chats, fake.scored, text=False), [()] * 9)
    if not recorded.tally.asked: return
    recorded.store.close()
    CHECKS[check](Case(engine(f"replay:{tmp_path / 'run.sqlite'}", store=False), fake.chats, fake.scored, text=False), [()] * 9)


@pytest.fixture(scope="session")
def offline(python, truth, tmp_path_factory):
    "What the checks found of vLLM in float32, run in its own environment."
    given = tmp_path_factory.mktemp("truth") / "reference.json"
    given.write_text(json.dumps(truth))
    spec = "vllm:smollm2?dtype=float32" # length and memory by what fits
    p = subprocess.Popen([python, Path(__file__).with_name("engines_contract.py"), spec, given], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True) # an interrupt goes to its whole group
    try: said, wrong = p.communicate(timeout=600)
    finally: end_group(p)
    assert p.returncode == 0, wrong[-3000:]
    return json.loads(said.splitlines()[-1])


@pytest.mark.parametrize("check", CHECKS)
def test_vllm(check, offline): assert offline[check] is None, offline[check]


def test_vllm_goes_on_after_an_interrupt(offline): assert offline["go_on"] is None, offline["go_on"]


ADAPTED = """
import json, sys
from rubriclab.core.types import Chat
from rubriclab.engines.engine import engine
if __name__ == "__main__":
    engines = [engine(spec, store=False) for spec in sys.argv[1:]]
    found = [[x for s in e.score([Chat.user("Is it short?", prefill="Answer:"), Chat.user("One more")], [" yes", " no"]) for x in s.logprobs] for e in engines]
    print(json.dumps(found + [len({id(e.backend.llm()) for e in engines}) if sys.argv[1].startswith("vllm") else 0]))
    for e in engines: e.close()
"""


def test_trained_adapters_are_engines_of_vllm_too(python, bundled, tmp_path):
    pytest.importorskip("peft", reason="needs the extra: pip install 'rubriclab[hf]'")
    import torch
    from peft import LoraConfig, get_peft_model
    from rubriclab.training.recipe import open_base
    for n, r in ((1, 4), (2, 16)):
        torch.manual_seed(n)
        get_peft_model(open_base("smollm2")[0], LoraConfig(task_type="CAUSAL_LM", r=r, lora_alpha=4 * r, target_modules="all-linear", init_lora_weights=False)).save_pretrained(tmp_path / str(n))
    def read(python, name, more):
        specs = [f"{name}?dtype=float32{more}", *(f"{name}?adapter={tmp_path / str(n)}&dtype=float32{more}" for n in (1, 2))]
        done = subprocess.run([python, "-c", ADAPTED, *specs], capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1])
    here, there = read(sys.executable, "smollm2", ""), read(python, "vllm:smollm2", "&max_len=1024&memory=0.3")
    assert there[-1] == 1 # one vLLM for the base and both of its adapters
    apart = lambda a, b: max(abs(x - y) for x, y in zip(a, b))
    assert all(apart(a, b) < 2e-3 for a, b in zip(here[:3], there[:3])) and min(apart(there[0], there[1]), apart(there[1], there[2])) > 1


@pytest.mark.parametrize("check", CHECKS)
def test_served(check, server, truth): CHECKS[check](language_model(engine(server, store=False), nats=BFLOAT16, exact=False, schema=True), truth)


def test_served_margins_are_not_quantized(server, truth):
    "A float32 head in vLLM leaves no steps: margins differ where the truth does."
    e = engine(server, store=False)
    margins = [s.logprobs[0] - s.logprobs[1] for s in e.score([c for c, _ in SCORED], [" A", " B"])]
    assert len({round(m, 5) for m in margins}) >= 5 and len({round(m * 16) / 16 - m for m in margins}) > 1


def test_many_choices(server):
    "More choices than vLLM's server shows by default."
    letters = [f" {c}" for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"]
    got, two = engine(server, store=False).score([SCORED[0][0]] * 2, [letters, letters[:2]])
    assert len(got.logprobs) == 26 and max(abs(x - y) for x, y in zip(got.logprobs, two.logprobs)) < BFLOAT16


def test_letters_take_one_request_once_their_tokens_are_known(server):
    e = engine(server, store=False)
    chats = [c for c, _ in SCORED]
    slow = engine(server, store=False).score(chats[:1], [" A", " B"]) + [x for c in chats[1:] for x in engine(server, store=False).score([c], [" A", " B"])]
    e.backend.known.clear()
    e.score(chats[:1], [" A", " B"])
    before = e.backend.running.gate.sent
    quick = e.score(chats, [" A", " B"])
    ended_alike = sum(c.prefill == chats[0].prefill for c in chats)
    assert e.backend.running.gate.sent - before < len(chats) + 5 * (len(chats) - ended_alike + 1)
    assert all(max(abs(x - y) for x, y in zip(a.logprobs, b.logprobs)) < BFLOAT16 and b.exact for a, b in zip(slow, quick))


def test_echo_and_likeliest_tokens_agree_with_the_tokens_by_id(server, bundled):
    "The same server, taken for one that knows less."
    chat, letters = SCORED[0][0], [" A", " B"]
    by_id, = engine(server, store=False).score([chat], letters)
    from rubriclab.engines.api import open_backend
    target = server.removeprefix("api:")
    for options, dull in (({"tokenizer": "smollm2"}, {"token_ids": False}), ({}, {"token_ids": False, "echo": False})):
        backend = open_backend(target, **options)
        found = backend.abilities()
        assert found.kind == "vllm" and found.token_ids and found.echo and found.top == 20 and found.json_schema and found.prefill and found.max_len == 2048
        backend.served, backend.listed = found.replace(**dull), {"owned_by": "somebody"}
        s, = Engine(backend).score([chat], letters)
        assert not hasattr(s, "reason") and max(abs(x - y) for x, y in zip(s.logprobs, by_id.logprobs)) < BFLOAT16 or not s.exact, s
