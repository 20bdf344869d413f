"""What heal.py alone uses: its optimiser, and the account of its course."""
