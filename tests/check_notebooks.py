"""Fails unless the notebooks are clean and the modules are exactly what they export. Works on a copy, so a dirty checkout is no excuse."""
import filecmp, shutil, subprocess, sys, tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WATCHED = ("nbs", "rubriclab")


def files(root: Path) -> dict[str, Path]:
    return {str(p.relative_to(root)): p for d in WATCHED for p in (root / d).rglob("*")
            if p.is_file() and p.suffix in (".ipynb", ".py") and not {"__pycache__", ".ipynb_checkpoints"} & set(p.parts)}


def main() -> int:
    with tempfile.TemporaryDirectory() as d:
        copy = Path(d) / ROOT.name
        for name in WATCHED: shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
        for name in ("pyproject.toml", "README.md"): shutil.copy(ROOT / name, copy / name)
        tools = Path(sys.executable).parent
        for tool in ("nbdev-clean", "nbdev-export"): subprocess.run([tools / tool], cwd=copy, check=True)
        before, after = files(ROOT), files(copy)
        readme = subprocess.run([sys.executable, ROOT / "tests" / "make_readme.py", "--check"], capture_output=True, text=True)
        wrong = sorted(set(before) ^ set(after)) + sorted(k for k in set(before) & set(after) if not filecmp.cmp(before[k], after[k], shallow=False))
        if readme.returncode: wrong.append(f"README.md ({readme.stderr.strip()})")
        for name in wrong: print(f"not clean or not exported: {name}")
        print(f"check-notebooks: {len(before)} files, {len(wrong)} differ from what nbdev-clean and nbdev-export make of them")
        return 1 if wrong else 0


if __name__ == "__main__": sys.exit(main())
