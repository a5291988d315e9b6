"""What is counted, and what is too much: of addresses, of wrong keys, of clients, of APIs elsewhere."""
