"""Light imports, honest extras, and floors that import only from below."""
import ast, re, subprocess, sys
from pathlib import Path
import pytest
import rubriclab

PACKAGE = Path(rubriclab.__file__).parent
FLOORS = {"core": 1, "data": 2, "engines": 2, "retrieval": 2, "judges": 3, "rubrics": 4, "training": 5, "lab": 6}
HEAVY = ("torch", "transformers", "pandas", "matplotlib", "seaborn", "pyarrow", "sklearn", "statsmodels", "vllm", "papermill")


@pytest.mark.parametrize("code", ["import rubriclab", "from rubriclab import engine, judge, Rubric, filtered_rubrics", "from rubriclab.lab.cli import main", "import rubriclab.lab.run, rubriclab.lab.report"])
def test_nothing_heavy_is_loaded(code):
    loaded = subprocess.run([sys.executable, "-c", f"{code}\nimport sys; print(*[m for m in {HEAVY} if m in sys.modules])"], capture_output=True, text=True, check=True).stdout.split()
    assert loaded == []


def modules(): return [p for p in PACKAGE.rglob("*.py") if p.parent != PACKAGE and p.name != "__init__.py"]


def imported(path):
    "The modules of the package that a module imports, as it is written (nbdev writes relative imports)."
    here = path.relative_to(PACKAGE).parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = list(here[:len(here) - node.level]) if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])]).removeprefix("rubriclab.")
            yield from ([name] if node.module and "." in name else [f"{name}.{a.name}" for a in node.names])


def test_rooms_import_only_from_floors_below():
    edges, wrong = {}, []
    for p in modules():
        room = ".".join(p.relative_to(PACKAGE).with_suffix("").parts)
        edges[room] = {i for i in imported(p) if i.split(".")[0] in FLOORS}
        wrong += [f"{room} imports {i}" for i in edges[room] if FLOORS[i.split(".")[0]] > FLOORS[room.split(".")[0]]]
    assert wrong == [] and len(edges) > 15
    seen, done = [], set()
    def walk(room):
        assert room not in seen, f"a circle: {' -> '.join([*seen, room])}"
        if room in done: return
        seen.append(room)
        for other in edges.get(room, ()): walk(other)
        done.add(seen.pop())
    for room in edges: walk(room)


def test_extras_are_declared():
    text = (PACKAGE.parent / "pyproject.toml").read_text()
    for extra in ("hf", "vllm", "vllm-cpu", "api", "ray", "train", "rag", "lab", "docs", "dev"): assert re.search(rf"^{extra} = \[", text, re.M), extra


@pytest.mark.parametrize("spec, extra", [("hf:nowhere", "hf"), ("smollm2", "hf"), ("vllm:nowhere", "vllm"), ("api:m@http://127.0.0.1:1", "api")])
def test_a_missing_extra_says_what_to_install(spec, extra, tmp_path):
    hide = f"import sys\nfor m in ('torch', 'transformers', 'vllm', 'aiohttp', 'gguf'): sys.modules[m] = None\nfrom rubriclab import engine\ntry: engine({spec!r}, store=False)\nexcept ImportError as e: print(e)"
    out = subprocess.run([sys.executable, "-c", hide], capture_output=True, text=True, env={"PATH": "", "RUBRICLAB_CACHE_DIR": str(tmp_path), "HOME": str(tmp_path)})
    assert f'pip install "rubriclab[{extra}' in out.stdout, out.stdout + out.stderr[-800:]
