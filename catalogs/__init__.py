"""Many stores at a glance: list them, look into one."""
