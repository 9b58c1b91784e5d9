"""Plans on GPUs: hours and money of batch commands and of recipes."""
import re
from conftest import command
from rubriclab.data.records import write_rows
from rubriclab.engines.fake import World


def takes(said): # of the first role: hours, dollars at least, dollars at most
    return tuple(map(float, re.search(r"([\d.]+) GPU hours, \$([\d.,]+) to \$([\d.,]+)", said).groups()))


def test_a_plan_has_hours_and_money(tmp_path):
    write_rows(tmp_path / "pairs.jsonl", World(seed=4).pairs(6000, per_prompt=1))
    plan = lambda *more: command("judge", tmp_path / "pairs.jsonl", tmp_path / "out.jsonl", "--readout", "generate", "--plan", *more)
    (hours, low, high), (slower, *_) = (takes(plan("-e", "vllm:Qwen/Qwen3-8B", "--gpu", gpu).stdout) for gpu in ("h100", "a100"))
    assert 0 < hours < slower and abs(low / hours - 1.99) < 0.2 and high > low
    assert takes(plan("-e", "vllm:Qwen/Qwen3-8B").stdout)[0] == slower # a100 where none is named
    assert "not known: add prices=FILE" in plan("-e", "api:some@http://127.0.0.1:1").stdout
    wrong = plan("-e", "vllm:Qwen/Qwen3-8B", "--gpu", "tpu")
    assert wrong.returncode == 2 and "there are a100" in wrong.stderr and not wrong.stdout


def test_a_served_model_has_the_price_of_its_list(tmp_path):
    write_rows(tmp_path / "pairs.jsonl", World(seed=4).pairs(4, per_prompt=1))
    (tmp_path / "prices.yaml").write_text("small: {input: 1000, output: 2000}\n")
    plan = lambda model: command("judge", tmp_path / "pairs.jsonl", tmp_path / "out.jsonl", "--readout", "generate", "--max-tokens", "100", "--plan",
                                 "-e", f"api:{model}@http://127.0.0.1:1?prices={tmp_path / 'prices.yaml'}")
    calls, read, _, written, dollars = re.search(r"([\d,]+) +([\d,]+) +([\d,]+) +([\d,]+)  \$([\d.]+)", plan("small").stdout).groups()
    assert (calls, written) == ("8", "800") and abs(float(dollars) - (int(read.replace(",", "")) * 1000 + 800 * 2000) / 1e6) < 0.01
    assert "has no 'large'; it has small" in plan("large").stderr


def test_a_plan_counts_with_the_models_own_tokenizer_and_says_what_does_not_fit(tmp_path):
    from rubriclab.engines.bundled import fetch
    pairs = World(seed=4).pairs(4, per_prompt=1)
    write_rows(tmp_path / "pairs.jsonl", [*pairs[:3], pairs[3].replace(chosen="The tide comes in. " * 4000)])
    done = command("judge", tmp_path / "pairs.jsonl", tmp_path / "out.jsonl", "--plan", "-e", f"vllm:{fetch()}")
    assert "judge: 2 of 8 calls have no result here: they are too long" in done.stdout, done.stdout + done.stderr
