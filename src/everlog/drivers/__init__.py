"""What the log and the store of one engine share."""
