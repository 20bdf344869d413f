"""The pages of a run folder, and of a folder of runs, for a browser without a network."""
