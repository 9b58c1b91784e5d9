"""The bundled model against public labels: IFBench's 335 stored constraint verdicts and SIGHT's nine categories, each readout beside the baselines.

    RUBRICLAB_DATA_DIR=FOLDER python benchmarks/grading_public.py [ifbench|sight] [ENGINE]

Prints accuracy, kappa and AUROC with 95 % intervals clustered by prompt, whatever they are. The probe is scored on prompts that it was not fitted on. Written labels
take the longest, so they are read on a sample of 100 items, and n says so.
"""
import sys
from rubriclab.data.records import prompt_key
from rubriclab.data.rubric_sets import load_items
from rubriclab.engines.engine import engine
from rubriclab.judges.pointwise import apply_thresholds, fit_thresholds, grade
from rubriclab.judges.probe import fit_probe, probe_report
from rubriclab.lab.grades import grade_rows, grades_text, summarize_grades


def halves(items):
    "Every second prompt to fit on, the others to report on."
    side = {p: n % 2 for n, p in enumerate(dict.fromkeys(map(prompt_key, items)))}
    return [[i for i in items if side[prompt_key(i)] == k] for k in (0, 1)]


def report(name, items, grades, again=()): print(f"\n## {name}\n{grades_text(summarize_grades(grade_rows(items, grades, again)))}", flush=True)


if __name__ == "__main__":
    names, e = [n for n in sys.argv[1:2] if n in ("ifbench", "sight")] or ["ifbench", "sight"], engine(sys.argv[-1] if len(sys.argv) > 2 else "smollm2")
    for name in names:
        items = load_items(name)
        how = {"prompt": "grade/criterion_first"} if name == "sight" else {} # short comments, long definitions
        plain = grade(items, e, **how)
        report(f"{name}, logprob", items, plain, grade(items, e, labels_order="reversed", **how))
        report(f"{name}, logprob, calibrated on N/A", items, grade(items, e, calibrate="N/A", **how))
        by_id = {g.item_id: g for g in plain}
        fit, rest = halves(items)
        cuts = fit_thresholds(fit, [by_id[i.id] for i in fit], each=name == "sight")
        report(f"{name}, logprob, threshold fitted on the other half", rest, apply_thresholds(rest, [by_id[i.id] for i in rest], cuts))
        few = items[:100] if name == "ifbench" else items[:30]
        report(f"{name}, generate, first {len(few)} items", few, grade(few, e, readout="generate", max_tokens=96, **how))
        print(f"\n## {name}, probe, prompts it was not fitted on")
        for row in probe_report(fit_probe(items, e, **how)): print("  ".join(f"{k} {v}" for k, v in row.items() if v != ""))
