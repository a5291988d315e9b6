"""One line per finished request. Never a prompt, a key or a query string."""

import logging

from supervisord_llm.telemetry.record import RequestRecord

log = logging.getLogger("llm_supervisor.access")


def write(record: RequestRecord) -> None:
    """Log at INFO, or at DEBUG what probes ask all day; the figures are fields of the record."""
    is_routine = record.method == "GET" and record.model is None and record.status < 400
    level = logging.DEBUG if is_routine else logging.INFO
    if not log.isEnabledFor(level):
        return
    latency_ms = round(record.latency_s * 1000, 1)
    log.log(
        level,
        "%s %s %d in %.1f ms",
        record.method,
        record.path,
        record.status,
        latency_ms,
        extra={
            "model": record.model,
            "tokens": None if record.usage is None else record.usage.total,
            "latency_ms": latency_ms,
            "source": record.source or None,
            "status": record.status,
            "outcome": record.outcome.value,
            "error": record.refusal or None,
            "wait_ms": round(record.wait_s * 1000, 1),
            "request_id": record.request_id,
        },
    )
