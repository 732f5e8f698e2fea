"""Real servers for the tests, on a machine without Docker: installed, started, looked after and stopped under one folder."""
