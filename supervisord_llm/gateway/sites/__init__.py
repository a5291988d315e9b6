"""Other web services behind the same door: sites.py says which, and what may pass; relay.py passes it."""
