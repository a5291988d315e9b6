"""Looks at this host for `doctor`, and changes nothing: each file gathers the facts of one in ../diagnosis.

configuration.py daemon.py gpu.py host.py network.py units.py wsl.py    the facts of each
limit.py     time limits: nothing here waits for a driver, a bus or a disk that hangs
"""
