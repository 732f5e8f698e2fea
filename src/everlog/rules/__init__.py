"""What every store answers, whatever it keeps its rows in: decisions without I/O, so that a store can take them inside its transaction."""
