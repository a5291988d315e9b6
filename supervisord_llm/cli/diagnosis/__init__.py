"""From facts of a host to what `doctor` says about it. Pure: no file here touches the host.

    finding.py   one thing that was looked at, how it is and what to do
    access.py    who may open what
    wsl.py gpu.py systemd.py daemon.py host.py network.py    the facts of each, and `findings(facts)`

The facts are gathered in ../examination.
"""
