"""What it means to be a log or a store, as cases that every adapter passes. Free of any test framework.

An adapter's tests give each case of `everlog.conformance.log.cases()` a fresh harness, twelve lines in any framework:

    for case in cases():
        if case.applies_to(features):
            await case(harness)
"""
