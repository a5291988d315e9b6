"""What the daemon tells about itself: logs, the access log, metrics, statistics. Nothing here decides."""
