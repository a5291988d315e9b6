"""What the daemon tells systemd."""
