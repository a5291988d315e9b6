"""A request's permission to use an engine: the only way the gateway touches the fleet.

    async with runtime.lease("coder", source="webui") as lease:   # enters at once; the request is now waiting
        backend = await lease.admission                          # raises Refused; may be awaited in slices
        ...relay...

Leaving the block gives the lease back, or takes the request out of the queue: counts are paired by
construction.
"""

import asyncio
from dataclasses import dataclass

from supervisord_llm.errors import Refused
from supervisord_llm.runtime.ports import Backend


@dataclass(eq=False, slots=True)
class Lease:
    """One request of one client."""

    request: int
    model: str
    source: str
    asked_at: float
    """Loop time, seconds."""
    admission: asyncio.Future[Backend]
    """Resolves to where the engine serves, or raises Refused."""
    admitted_at: float | None = None

    async def settled(self, what: str) -> None:
        """Return once `admission` has a result, or an exception. Our own end is not that of the request.

        Raises:
            Refused: `shutting_down`, the daemon cannot do `what` any more.
        """
        if not self.admission.done():
            await asyncio.wait([self.admission])  # unlike `await`, leaves it alone when we are cancelled
        if self.admission.cancelled():
            raise Refused("shutting_down", f"cannot {what}: the server shuts down; try again soon")

    @property
    def is_admitted(self) -> bool:
        return self.admitted_at is not None

    @property
    def wait_s(self) -> float:
        """How long the request waited for its engine; 0 when it was ready."""
        return 0.0 if self.admitted_at is None else self.admitted_at - self.asked_at
