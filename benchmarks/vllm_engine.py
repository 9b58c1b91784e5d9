"""What the vllm engine costs beside vLLM called bare, on the same running model: the bundled one on a CPU.

    .venv-vllm/bin/python benchmarks/vllm_engine.py            three rounds (make the environment with: python tests/vllm_env.py)
    .venv-vllm/bin/python benchmarks/vllm_engine.py --quick    one round of a quarter of the size

`generate` beside `LLM.chat`, `score` beside one-token reads of the same texts, with and without a store of finished calls, in random order, the prefix cache emptied before each. `grade`: twelve criteria on one answer; tokens computed by vLLM's own counters over unique
ones, where a beginning that prompts share counts in whole blocks. Bars: .95, .9 and 1.1.
"""
import random, statistics, sys, tempfile, time
from itertools import count
from pathlib import Path
from bars import holds, leave

WORDS = "tide moon harbor letter window garden engine winter copper valley signal paper river candle market bridge meadow thunder violet anchor reason method figure measure".split()


def timed(sides, rng, reset): # seconds by name
    took = {}
    for name in rng.sample(sorted(sides), len(sides)):
        reset()
        start = time.perf_counter()
        sides[name]()
        took[name] = time.perf_counter() - start
    return took


def kept(backend, folder, numbers=count()): # an engine with a store that is empty
    from rubriclab.core.store import Store
    from rubriclab.engines.engine import Engine
    return Engine(backend, Store(Path(folder, f"{next(numbers)}.sqlite")), progress=False)


def generating(backend, e, rng, n, folder):
    from vllm import SamplingParams
    from rubriclab.core.types import Chat
    chats = [Chat.user("Write about " + " ".join(rng.choices(WORDS, k=40)) + ".") for _ in range(n)]
    bare = lambda: backend.llm().chat([[m.model_dump() for m in c.messages] for c in chats], SamplingParams(temperature=0.0, max_tokens=48), use_tqdm=False)
    return {"bare": bare, "ours": lambda: e.generate(chats, max_tokens=48), "ours, stored": lambda: kept(backend, folder).generate(chats, max_tokens=48)}


def scoring(backend, e, rng, n, folder):
    from vllm import SamplingParams
    from rubriclab.core.types import Chat
    chats = [Chat.user("Which is better? " + " ".join(rng.choices(WORDS, k=120)), prefill="Winner: Response") for _ in range(n)]
    texts = [backend.prompt(c)[0] for c in chats]
    ids = [backend.tokenizer(x, add_special_tokens=False)["input_ids"][-1] for x in (" A", " B")]
    bare = lambda: backend.llm().generate(texts, SamplingParams(temperature=0.0, max_tokens=1, logprob_token_ids=ids, detokenize=False), use_tqdm=False)
    return {"bare": bare, "ours": lambda: e.score(chats, [" A", " B"]), "ours, stored": lambda: kept(backend, folder).score(chats, [" A", " B"])}


def unique_in_blocks(prompts, block):
    "Tokens to compute where only whole blocks of a shared beginning are shared."
    total, before = 0, []
    for p in sorted(prompts):
        shared = next((k for k, (a, b) in enumerate(zip(p, before)) if a != b), min(len(p), len(before))) # the longest is with the neighbor
        total, before = total + len(p) - min(shared, len(p) - 1) // block * block, p
    return total


def grading(backend, e, rng, n, reset): # computed over unique
    from rubriclab.core.types import Item
    from rubriclab.judges.pointwise import Grading, criterion_tasks
    words = lambda k: " ".join(rng.choices(WORDS, k=k))
    criteria = [f"The response {words(25)}." for _ in range(12)]
    items = [Item(id=str(i), prompt=f"Explain {words(12)}.", response=words(450), rubric=criteria) for i in range(n)]
    chats = [t.chat for t in criterion_tasks(items, Grading())]
    reset()
    e.score(chats, [" no", " yes"])
    block = backend.llm().llm_engine.vllm_config.cache_config.block_size
    return e.work.computed_tokens / unique_in_blocks([backend.prompt(c)[1] for c in chats], block), block, e.work.unique_tokens / e.work.computed_tokens


def main(quick):
    from rubriclab.engines.engine import Engine
    from rubriclab.engines.vllm import open_backend
    backend, rng = open_backend("smollm2", dtype="float32"), random.Random(0)
    e, reset, n, rounds = Engine(backend, progress=False), lambda: backend.llm().reset_prefix_cache(), 32 if quick else 128, 1 if quick else 3
    met, folder = [], tempfile.TemporaryDirectory()
    for sides in (generating(backend, e, rng, 8, folder.name), scoring(backend, e, rng, 8, folder.name)): timed(sides, rng, reset) # warm
    for name, make, bar in (("generate", generating, 0.95), ("score", scoring, 0.9)):
        took = [timed(make(backend, e, rng, n, folder.name), rng, reset) for _ in range(rounds)]
        for side in ("ours", "ours, stored"):
            ratios = [t["bare"] / t[side] for t in took]
            print(f"{name:<9} {n} requests, {side}: {statistics.median(ratios):.3f} of bare, {min(ratios):.3f} to {max(ratios):.3f} in {rounds} rounds; bare {statistics.median(n / t['bare'] for t in took):.1f} a second", flush=True)
            met.append(holds(f"{name}, {side}, of bare", statistics.median(ratios), least=bar))
    found = [grading(backend, e, rng, n // 8, reset) for _ in range(rounds)]
    print(f"grade     {n // 8} answers, 12 criteria: computed over unique in blocks of {found[0][1]}: {statistics.median(f[0] for f in found):.3f} (bar 1.1); unique to the token over computed {statistics.median(f[2] for f in found):.3f}")
    met.append(holds("computed over unique tokens", statistics.median(f[0] for f in found), most=1.1))
    backend.close()
    if not quick: leave(met)


if __name__ == "__main__": main("--quick" in sys.argv)
