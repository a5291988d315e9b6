"""Other web services behind the same door."""
