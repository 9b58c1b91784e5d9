"""A Jupyter laboratory for rubric-based reward modeling."""
__version__ = "0.1.0"

# What most people need, imported when it is first used: `import rubriclab` loads nothing heavy.
_PUBLIC = {
    "rubriclab.core.types": ("AnswerPair", "Chat", "Criterion", "Failure", "Grade", "Item", "Judgment", "PreferencePair", "Ranking", "Rubric", "Verdict"),
    "rubriclab.core.store": ("Store",),
    "rubriclab.engines.engine": ("Engine", "engine"),
    "rubriclab.data.records": ("read_pairs", "write_rows"),
    "rubriclab.data.items": ("read_items",),
    "rubriclab.data.sets": ("load",),
    "rubriclab.data.rubric_sets": ("load_items",),
    "rubriclab.judges.margin": ("margins",),
    "rubriclab.judges.pairwise": ("correct", "judge"),
    "rubriclab.judges.pointwise": ("grade",),
    "rubriclab.judges.verifier": ("verify",),
    "rubriclab.rubrics.crg": ("write_rubrics",),
    "rubriclab.rubrics.c2": ("contrast",),
    "rubriclab.rubrics.consistency": ("consistent", "filtered_rubrics"),
}
_WHERE = {name: module for module, names in _PUBLIC.items() for name in names}
__all__ = sorted(_WHERE)


def __getattr__(name: str) -> object:
    if name not in _WHERE: raise AttributeError(f"module 'rubriclab' has no attribute {name!r}")
    from importlib import import_module
    value = getattr(import_module(_WHERE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]: return sorted({*globals(), *_WHERE})
