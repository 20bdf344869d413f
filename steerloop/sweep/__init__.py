"""Sweeps: arms × seeds × regimes of data, resumable, one row a point.

    python -m steerloop.sweep frontier --seeds 0 1 2 3 4     run what is missing, then the tables
    python -m steerloop.sweep real --models smollm2-135m     teachers, barrier, filter by trait
    python -m steerloop.sweep frontier --on ray              its groups as tasks of a Ray cluster
    python -m steerloop.sweep frontier --shard 1/8           the first of eight jobs' share
    python -m steerloop.sweep                                docs/results.md from the rows there are
"""
