"""One workload a file: what is run, and how its record reads.

Each has `run(bench, ...)`, which returns a record that JSON can hold, and `section(record)`,
which makes tables and plots of it.
"""
