"""Subscriptions: who handles which events, and what becomes of progress, state and failures."""
