"""The crash campaign: the whole service, killed at seeded instants while orders flow, and judged by what it left."""
