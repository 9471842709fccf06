"""Sans-I/O roles. No I/O, no clock, no randomness of their own, no logging: import-linter holds this."""
