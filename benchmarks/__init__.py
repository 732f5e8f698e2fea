"""Benchmarks: what Everlog does beside what the same work costs by hand, in pairs taken side by side.

A benchmark is a `Benchmark` in one of the modules beside this file, and stands in `__main__.BENCHMARKS`.
"""
