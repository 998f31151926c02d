"""The rehearsal of the released road at its real sizes: its inputs, runs and checks, and their table."""
