"""The engine: patterns, rules, patches, the driver."""
