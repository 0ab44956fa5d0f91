"""Many stores and runs at a glance: list them, look into one."""
