"""From the tables in docs/results to the tables and figures of docs/results.md."""
