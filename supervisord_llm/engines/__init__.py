"""Engines as processes: the command, its birth, its output, its end. Implements the runtime's Launcher port.

launcher.py starts one: command.py says what to run, process.py runs and ends it, records.py remembers it
across a crash of the daemon, adoption.py asks whether it can be taken over, orphans.py ends what cannot.
engine.py is its life: logs.py, progress.py and kv_cache.py read what it says, probe.py notices that it is
ready, sleep.py puts it to sleep and wakes it, counters.py sees whether it works, oom.py and diagnose.py
explain its end. tree.py finds all of its processes, ownership.py whose a process is. preflight.py finds,
before a launch, the mistakes that vLLM would take 20 s to report.

remote.py is the same for models elsewhere: no process, but a circuit; outage.py says why one is out of reach.
dispatch.py picks between the two.
"""
