"""One line per finished request. Never a prompt, a key or a query string."""

import logging

from supervisord_llm.telemetry.record import RequestRecord

log = logging.getLogger("llm_supervisor.access")


def write(record: RequestRecord) -> None:
    """Log at INFO; the figures are fields of the log record."""
    if not log.isEnabledFor(logging.INFO):
        return
    latency_ms = round(record.latency_s * 1000, 1)
    log.info(
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
