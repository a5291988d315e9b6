"""What the host's GPUs are and how much of each the engines may hold.

sensor.py   asks NVML through nvidia-ml-py; what it cannot learn is a sentence, never an exception
budget.py   pure: configuration + reading -> the GPUs of the fleet, each with its budget
"""
