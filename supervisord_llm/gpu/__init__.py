"""What the host's GPUs are, who holds how much of each, and how much of each the engines may hold.

sensor.py   asks NVML through nvidia-ml-py; what it cannot learn is a sentence, never an exception
watch.py    the child process that does the asking while the daemon runs; watcher.py is the daemon's end of it
sampler.py  when to look; readings become samples by the fleet's indices; holders.py: whose process is whose
learnt.py   what was measured of each model, on disk
budget.py   pure: configuration + reading -> the GPUs of the fleet, each with its budget
specs.py    pure: configuration + GPUs -> what the core knows of each model
"""
