"""What the benchmarks share: fresh processes, tables, shapes, and the models of the systems that are compared."""
