"""The one Launcher that the runtime knows: each model's own is picked by what its engine is."""

from collections.abc import Callable

from supervisord_llm.config.model import Model
from supervisord_llm.core.effects import StartEngine
from supervisord_llm.engines.launcher import LocalLauncher
from supervisord_llm.engines.remote import RemoteLauncher
from supervisord_llm.errors import LaunchError
from supervisord_llm.runtime.ports import Engine, Report


class Launchers:
    """Between processes on this host and models elsewhere."""

    def __init__(
        self, here: LocalLauncher, elsewhere: RemoteLauncher, model_of: Callable[[str], Model | None]
    ) -> None:
        """`model_of`: a model's settings as they are now; None: it is not in the configuration."""
        self._here = here
        self._elsewhere = elsewhere
        self._model_of = model_of

    async def launch(self, order: StartEngine, report: Report) -> Engine:
        """
        Raises:
            LaunchError: it could not be launched.
        """
        model = self._model_of(order.model)
        if model is None:
            raise LaunchError(f"cannot start {order.model}: it has left the configuration")
        launcher = self._elsewhere if model.engine == "remote" else self._here
        return await launcher.launch(order, report)
