"""What must hold between settings. Each check reports problems; none of them asks the host."""
