"""Engines as processes: the command, its birth, its output, its end. Implements the runtime's Launcher port.

launcher.py joins the rest: command.py says what to run, process.py runs and ends it, tree.py finds all of its
processes, logs.py and progress.py read what it says, probe.py notices that it is ready, diagnose.py explains
its end, records.py remembers it across a crash of the daemon. preflight.py finds, before a launch, the
mistakes that vLLM would take 20 s to report.
"""
