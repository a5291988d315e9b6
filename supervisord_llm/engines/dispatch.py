"""The one Launcher that the runtime knows: each model's own is picked by what its engine is."""

from collections.abc import Callable

from supervisord_llm.core.effects import StartEngine
from supervisord_llm.engines.launcher import LocalLauncher
from supervisord_llm.engines.remote import RemoteLauncher
from supervisord_llm.runtime.ports import Engine, Report


class Dispatch:
    """Between processes on this host and models elsewhere."""

    def __init__(
        self, here: LocalLauncher, elsewhere: RemoteLauncher, is_elsewhere: Callable[[str], bool]
    ) -> None:
        self._here = here
        self._elsewhere = elsewhere
        self._is_elsewhere = is_elsewhere

    async def launch(self, order: StartEngine, report: Report) -> Engine:
        """
        Raises:
            LaunchError: it could not be launched.
        """
        launcher = self._elsewhere if self._is_elsewhere(order.model) else self._here
        return await launcher.launch(order, report)
