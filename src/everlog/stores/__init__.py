"""The adapters of the Store port, one file or folder each, loaded by the scheme of a URL on first use."""
