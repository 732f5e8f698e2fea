"""What tests of applications need: time that is moved by hand."""
