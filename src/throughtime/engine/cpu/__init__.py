"""The compiled backend for the CPU: a step is traced, differentiated, scheduled, and written as machine code."""
