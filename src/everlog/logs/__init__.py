"""The adapters of the Log port, one file each, loaded by the scheme of a URL on first use."""
