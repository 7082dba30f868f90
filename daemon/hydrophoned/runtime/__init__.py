"""What runs the daemon: its configuration, commands and logs, and the wiring and lives of its parts."""
