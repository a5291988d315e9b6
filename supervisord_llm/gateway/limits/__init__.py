"""What is counted, and what is too much: of addresses, of wrong keys, of clients, of APIs elsewhere.

limits.py     what a request meets: buckets.py (rates), lockout.py (wrong keys), meter.py (clients)
rates.py      what each model elsewhere may be sent
"""
