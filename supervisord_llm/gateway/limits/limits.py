"""The limits that a request meets on its way in: of its address, of wrong keys, of its client.

What was counted outlives a reload; what is allowed is that of the configuration in force.
"""

import time

from supervisord_llm.config.model import UNIX, Client
from supervisord_llm.gateway.auth import WrongKey
from supervisord_llm.gateway.exchange import Exchange
from supervisord_llm.gateway.limits.buckets import Addresses
from supervisord_llm.gateway.limits.lockout import Lockout
from supervisord_llm.gateway.limits.meter import Meter
from supervisord_llm.telemetry.usage import UsageStore


class Limits:
    """One per gateway."""

    def __init__(self, usage: UsageStore) -> None:
        self._usage = usage
        self._addresses = Addresses()
        self._lockout = Lockout()
        self._meters: dict[str, Meter] = {}

    def configure(self, clients: tuple[Client, ...]) -> None:
        """These clients exist, with these limits. What those that stay have taken stays counted."""
        meters = self._meters
        self._meters = {}
        for client in clients:
            meter = self._meters[client.name] = meters.get(client.name) or Meter(client, self._usage)
            meter.allow(client)

    def check_address(self, exchange: Exchange) -> None:
        """Count a request of an address; one that came by a unix socket has none.

        Raises:
            Refused: `rate_limit_exceeded`.
        """
        allowed = exchange.settings.per_address
        if allowed is not None and exchange.peer != UNIX:
            self._addresses.take(exchange.peer, allowed, time.monotonic())

    def identify(self, exchange: Exchange) -> None:
        """Find out whose key the request carries, and count it as a request of that client.

        Raises:
            Refused: `invalid_api_key`, `rate_limit_exceeded`.
        """
        try:
            exchange.caller = exchange.settings.keyring.authenticate(exchange.request.headers)
        except WrongKey:
            if exchange.peer != UNIX:
                self._lockout.wrong_key(exchange.peer, time.monotonic())
            raise
        exchange.meter = self._meters.get(exchange.caller.name)
        if exchange.meter is not None:
            exchange.meter.take(time.monotonic())
