"""What a reload changes, and what it cannot."""

from collections.abc import Mapping, Sequence

from supervisord_llm.config.model import Config
from supervisord_llm.core.explain import gib
from supervisord_llm.core.fleet import Gpu, ModelSpec


def need_restart(before: Config, after: Config) -> list[str]:
    """Keys whose change takes effect with the next start alone. `before` is what the daemon started with."""
    pairs = (
        ("paths", before.paths, after.paths),
        ("server.listen", before.server.listen, after.server.listen),
        ("server.tls", before.server.tls is None, after.server.tls is None),
        ("log.format", before.log_format, after.log_format),
    )
    return [key for key, one, other in pairs if one != other]


def changes(
    before: Mapping[str, ModelSpec],
    after: Mapping[str, ModelSpec],
    gpus_before: Sequence[Gpu],
    gpus_after: Sequence[Gpu],
) -> dict[str, object]:
    """Models by name that came, went, or are launched otherwise from now on; and the budgets that differ."""
    budgets = {gpu.index: gpu.budget_bytes for gpu in gpus_before}
    return {
        "added": [name for name in after if name not in before],
        "removed": [name for name in before if name not in after],
        "changed": [
            name
            for name, spec in after.items()
            if name in before and spec.signature != before[name].signature
        ],
        "budgets": [
            f"GPU {gpu.index}: {gib(gpu.budget_bytes)}"
            for gpu in gpus_after
            if budgets.get(gpu.index) != gpu.budget_bytes
        ],
    }
