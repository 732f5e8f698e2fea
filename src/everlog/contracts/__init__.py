"""Contracts: which types a topic holds, what an event of a type must look like, and the check at every entrance."""
