"""Whether a measured number holds its bar: printed for each, and in the exit code of the benchmark."""
import math, sys


def holds(name: str, value: float, least: float = -math.inf, most: float = math.inf) -> bool:
    met = least <= value <= most # NaN meets none
    print(f"bar: {name} {value:.3f}, {f'at least {least:g}' if most == math.inf else f'at most {most:g}'}: {'met' if met else 'missed'}", flush=True)
    return met


def leave(met: list[bool]) -> None:
    "Exit code 1 where a bar was missed."
    sys.exit(0 if all(met) else 1)
