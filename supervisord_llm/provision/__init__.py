"""What an engine needs before it can be launched: a virtual environment and weights.

provisioner.py   joins them behind the runtime's Provisioner port
venvs.py         environments, built by uv.py as recipes.py has it
weights.py       from a model hub: fetch.py downloads in a child process what selection.py picks
fetch_unit.py    has another unit do both, where the daemon has no way to the internet
metadata.py      what the files of a model say of it; ask_hub.py: what the hub does; adapters.py: of LoRA
estimates.py     what each model will take of a GPU, from these
lock.py          one builder at a time; waiting.py: long waits that do not look like stalls

Standard library only, because a fresh checkout runs them before anything is installed: pip_config.py,
uv_wheel.py and tiny_model.py.
"""
