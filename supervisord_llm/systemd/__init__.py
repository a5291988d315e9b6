"""What the daemon tells systemd, and takes from it.

notify.py       that it is ready, what it does, that it is alive
activation.py   sockets that were listening before
starts.py       holds back a daemon whose starts fail
"""
