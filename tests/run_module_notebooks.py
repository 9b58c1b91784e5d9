"""Runs every module notebook with nbdev-test and prints how many there were; paper notebooks run through papermill instead."""
import subprocess, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SKIPPED = r"^(papers|tutorials)$|^[_.]"


def main() -> int:
    notebooks = [p for p in (ROOT / "nbs").rglob("*.ipynb") if not {"papers", "tutorials", ".ipynb_checkpoints"} & set(p.parts)]
    tool = Path(sys.executable).with_name("nbdev-test")
    code = subprocess.run([tool, "--skip-folder-re", SKIPPED, "--n-workers", "2", "--do-print"], cwd=ROOT).returncode
    print(f"nbdev-test: {len(notebooks)} module notebooks, {'all passed' if code == 0 else 'some failed'}")
    return code


if __name__ == "__main__": sys.exit(main())
