"""What training costs beside the model: milliseconds of a reward for each completion, and memory of data preparation.

    python benchmarks/training.py            50,000 rows beside 5,000
    python benchmarks/training.py --quick    5,000 beside 1,000

A reward's own time is the time of the call minus the time inside the engine, medians of five runs of 256 completions with the store on. Bars: 1 ms a completion; no more memory for many rows than for few.
"""
import json, resource, statistics, subprocess, sys, tempfile, time
from pathlib import Path
from rubriclab.core.store import Store
from rubriclab.engines.engine import Engine
from rubriclab.engines.fake import FakeBackend, Skills, World, other
from rubriclab.training.rewards import AgainstReference, ByRubric, Checked, LengthPenalty, MakesRight, Mixed, Ranked, Reward, VerifierTargets, Veto, WithinLength

WORLD, N = World(seed=5, criteria=8, pool=16), 256


class Timed(FakeBackend):
    "The fake engine, its own time counted."
    seconds = 0.0

    def logprobs(self, requests):
        found = super().logprobs(requests)
        while True:
            start = time.perf_counter()
            result = next(found, None)
            self.seconds += time.perf_counter() - start
            if result is None: return
            yield result


def columns(first: int) -> tuple[list[str], list[str], dict[str, list]]:
    "Prompts, completions and columns that no earlier run asked for."
    numbers = [first + n // 8 for n in range(N)]
    letters = [WORLD.lengths(i, 0)[0] for i in numbers]
    texts = [WORLD.answer(i, 0, x) + f" It goes on {n}." for n, (i, x) in enumerate(zip(numbers, letters))]
    plain = {i: [{"text": c.text, "weight": c.weight} for c in WORLD.rubric(i).criteria] for i in set(numbers)}
    rest = {"rubric": [plain[i] for i in numbers], "reference": [WORLD.answer(i, 0, other(x)) for i, x in zip(numbers, letters)], "constraints": [json.dumps([{"kind": "no_commas", "args": {}}, {"kind": "words_at_most", "args": {"n": 30}}])] * N,
            "request": [WORLD.request(i) for i in numbers], "better": [WORLD.answer(i, 0, x) for i, x in zip(numbers, letters)], "worse": [WORLD.answer(i, 0, other(x)) for i, x in zip(numbers, letters)], "answer": ["A"] * N, "rubric_label": ["helpful"] * N}
    return [WORLD.request(i) for i in numbers], texts, rest


def rewards() -> None:
    print(f"{'reward':<40}{'ms a completion':>16}{'judge itself':>14}")
    makers = {"by rubric, 8 criteria": ByRubric, "by rubric, guarded and ranked": lambda e: Ranked(Veto(LengthPenalty(ByRubric(e), 30, 0.01), WithinLength(30), 0.5)), "against a reference, both orders": AgainstReference,
              "by use of a written rubric": MakesRight, "checker and length": lambda e: Mixed([(Checked(), 0.7), (WithinLength(30), 0.3)]), "verifier's targets": lambda e: VerifierTargets()}
    for name, make in makers.items():
        own, judge = [], []
        for k in range(5):
            with tempfile.TemporaryDirectory() as d:
                backend = Timed(WORLD, Skills())
                reward = Reward(make(Engine(backend, Store(Path(d, "store.sqlite")), progress=False)), "it")
                prompts, texts, rest = columns(1000 * k)
                if name.startswith("by use"): texts = ["\n".join(f"{n}. {c['text']} {i}" for n, c in enumerate(r, 1)) for i, r in enumerate(rest["rubric"])]
                start = time.perf_counter()
                reward(prompts, texts, log_metric=lambda name, value: None, **rest)
                took = time.perf_counter() - start
            own.append((took - backend.seconds) / N * 1e3); judge.append(backend.seconds / N * 1e3)
        print(f"{name:<40}{statistics.median(own):>16.3f}{statistics.median(judge):>14.3f}", flush=True)


def pairs_file(n: int, d: str) -> Path:
    path = Path(d, "pairs.jsonl")
    with path.open("w", encoding="utf-8") as f:
        for i in range(n): f.write(json.dumps({"id": str(i), "prompt": f"Request {i}: say a few words about matter {i}. " + "Keep it short. " * 20, "chosen": f"First {i}. " + "It is so. " * 60, "rejected": f"Second {i}. " + "It is not. " * 60}) + "\n")
    return path


def pairs(n: int, tokenizer, d: str) -> int: # rows
    from rubriclab.training.rows import ROWS, TextData, split_rows
    data = TextData(source=str(pairs_file(n, d)), prompts=n)
    split = split_rows(ROWS["reward-model"](data), data, tokenizer, Path(d, "rows"))
    return split.report["train"] + split.report["test"]


def labels(n: int, tokenizer, d: str) -> int: # examples of a judge's head
    from rubriclab.core.types import Item
    from rubriclab.training.labels import prepare_labels
    items = (Item(id=str(i), prompt=f"Request {i}: say a few words about matter {i}.", response=f"Answer {i}. " + "It is so. " * 10, rubric=["The answer says that it is so."], gold_labels=(True,)) for i in range(n))
    return len(prepare_labels(items, tokenizer, folder=Path(d, "rows")).examples)


PREPARED = {"pairs": pairs, "labels": labels}


def preparation(what: str, n: int) -> dict[str, float]:
    from rubriclab.training.recipe import open_base
    _, tokenizer = open_base("tiny")
    peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    with tempfile.TemporaryDirectory() as d:
        PREPARED[what](100, tokenizer, d) # what it imports
        before, start = peak(), time.perf_counter()
        return {"rows": PREPARED[what](n, tokenizer, d), "rows_per_second": n / (time.perf_counter() - start), "peak_mib": peak(), "before_mib": before}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--rows"]: print(json.dumps(preparation(sys.argv[2], int(sys.argv[3])))); sys.exit()
    rewards()
    print(f"\n{'':<8}{'rows':>8}{'rows a second':>15}{'peak MiB':>10}{'of it before':>14}")
    for what in PREPARED:
        for n in (1_000, 5_000) if "--quick" in sys.argv else (5_000, 50_000):
            r = json.loads(subprocess.run([sys.executable, __file__, "--rows", what, str(n)], check=True, capture_output=True, text=True).stdout.splitlines()[-1])
            print(f"{what:<8}{r['rows']:>8,}{r['rows_per_second']:>15.0f}{r['peak_mib']:>10.0f}{r['before_mib']:>14.0f}", flush=True)
