"""Engines as processes: the command, its birth, its output, its end. Implements the runtime's Launcher port.

launchers.py      picks the launcher of a model by what its engine is
launcher.py       starts one here: an order becomes a process with a log, a record and a place of its own
remote.py         models elsewhere: no process, but a circuit that opens when an API fails

What to run
command.py        vLLM's words and environment; template.py: those of a model's own command
adapters.py       what vLLM is told of LoRA adapters; tool_parsers.py: of the tool calls of a model
preflight.py      mistakes that vLLM would take 20 s to report; installed.py and weight_files.py look for them

The process
process.py        one and its whole tree: spawned, watched, ended, reaped; tree.py finds it all
cgroup.py         its limits; network.py and namespace.py: what keeps it from the network
records.py        remembers it across a crash of the daemon; adoption.py asks whether it can be taken over,
                  orphans.py ends what cannot
ownership.py      whose a process is; listening.py: whose a TCP port is

Its life
engine.py         joins all of this
probe.py          notices that it is ready; ask.py is one request to it
logs.py           what it says; logfile.py is the file, with room of its own (reserve.py)
progress.py       how far its start has come; kv_cache.py: the size of its cache, as its log tells
counters.py       whether it works, by its own metrics
sleep.py          puts it to sleep and wakes it
diagnose.py       why it ended; oom.py: for want of which memory
"""
