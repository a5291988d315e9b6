"""What an engine needs before it can be launched: a virtual environment and weights.

provisioner.py joins them behind the runtime's Provisioner port. venvs.py builds environments with uv.py,
following recipes.py; weights.py has fetch.py download from a model hub, in a child process. lock.py lets one
work at a time, and waiting.py keeps long waits from looking like stalls.

Standard library only, because a fresh checkout runs them before anything is installed: pip_config.py,
uv_wheel.py and tiny_model.py.
"""
