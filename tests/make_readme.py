"""Writes README.md from nbs/index.ipynb as it is saved (nbdev-readme needs a Quarto binary). `--check` only compares."""
import json, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def output_text(o: dict) -> str:
    if o["output_type"] == "stream": return "```\n" + "".join(o["text"]).rstrip() + "\n```"
    data = o.get("data", {})
    if "text/markdown" in data: return "".join(data["text/markdown"]).rstrip()
    return "```\n" + "".join(data.get("text/plain", "")).rstrip() + "\n```"


def readme() -> str:
    parts = ["<!-- made from nbs/index.ipynb by tests/make_readme.py; edit the notebook -->"]
    for c in json.loads((ROOT / "nbs" / "index.ipynb").read_text(encoding="utf-8"))["cells"]:
        source = "".join(c["source"]).rstrip()
        if c["cell_type"] == "markdown": parts.append(source)
        elif not source.startswith("#| hide"): parts += [f"```python\n{source}\n```", *map(output_text, c["outputs"])]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    path = ROOT / "README.md"
    if "--check" not in sys.argv: path.write_text(readme(), encoding="utf-8")
    elif path.read_text(encoding="utf-8") != readme(): sys.exit("README.md differs from nbs/index.ipynb; run: python tests/make_readme.py")
